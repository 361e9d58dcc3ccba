"""The U-Net against PyTorch with the same weights, and the published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.pix2pix_unet import Generator, multiple
from aigc_jax.models.torch_translators import from_torch

KEY = jax.random.key(0)


def images(height=32, width=32, channels=3, n=2, seed=0):
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture
def twins():
    return pytest.importorskip("torch_twins")


def near(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, tolerance, tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"image_size": 256}, 54_413_955),
        ({"image_size": 128}, 41_828_995),
        ({"levels": 7}, 41_828_995),
    ],
)
def test_published_sizes(fields, parameters):
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    init = functools.partial(Generator(**fields).init, train=False)
    params = jax.eval_shape(init, KEY, x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize(
    ("levels", "shape", "norm", "train"),
    [
        (5, (64, 32), "batch", True),
        (3, (16, 24), "batch", False),
        (3, (24, 16), "instance", True),
    ],
)
def test_outputs_and_gradients_equal_torchs(twins, levels, shape, norm, train):
    twin = twins.UNet(3, 2, width=4, levels=levels, norm=norm, dropout=False)
    twin = twins.spread(twin).train(train)
    module, variables = from_torch(twins.arrays(twin))
    x = images(*shape)
    tx = twins.nchw(x).requires_grad_()
    expected = twin(tx)
    ct = np.random.default_rng(1).normal(size=(2, *shape, 2)).astype(np.float32)
    (expected * twins.nchw(ct)).sum().backward()
    call = functools.partial(module.apply, train=train, mutable=["batch_stats"])

    @jax.jit
    def both(params, x):
        rest = {k: v for k, v in variables.items() if k != "params"}
        function = lambda params, x: call({"params": params, **rest}, x)  # noqa: E731
        y, pullback, new = jax.vjp(function, params, x, has_aux=True)
        return y, pullback(ct), new

    y, (by_weight, by_image), new = both(variables["params"], x)
    near(y, twins.nhwc(expected))
    near(by_image, twins.nhwc(tx.grad))
    gradients = twins.arrays(twin) | {n: p.grad.numpy() for n, p in twin.named_parameters()}
    wanted = from_torch(gradients)[1]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted["params"]))
    for path, gradient in jax.tree_util.tree_leaves_with_path(by_weight):
        expected = wanted["params"][path[-2].key][path[-1].key]
        np.testing.assert_allclose(gradient, expected, 1e-4, 1e-5 * largest)
    if norm == "batch" and train:
        running = from_torch(twins.arrays(twin))[1]["batch_stats"]
        jax.tree.map(functools.partial(near, tolerance=1e-5), new["batch_stats"], running)


def model_and_variables(**fields):
    """Without `init`, which would take long to compile."""
    model, rng = Generator(width=2, image_size=64, **fields), np.random.default_rng(0)
    like = jax.eval_shape(functools.partial(model.init, train=False), KEY, images(64, 64))
    return model, jax.tree.map(lambda a: rng.uniform(0, 0.5, a.shape).astype(a.dtype), like)


def test_dropout_of_an_image_depends_on_its_key_alone():
    """Not on its place in the batch: instance norm, so that images don't meet."""
    model, variables = model_and_variables(norm="instance")
    x, keys = images(64, 64, n=4), jax.random.split(jax.random.key(1), 4)
    run = jax.jit(lambda x, keys: model.apply(variables, x, train=True, keys=keys))
    y = run(x, keys)
    near(run(x[::-1], keys[::-1]), y[::-1])
    some = np.array([2, 2, 1, 3])
    near(run(x[some], keys[some]), y[some])
    assert np.abs(y - run(x, keys[::-1])).max() > 1e-3


def test_dropout_drops_the_rate_and_keeps_the_mean():
    from aigc_jax.models.pix2pix_unet import _dropout

    x = jnp.ones((8, 16, 16, 4))
    y = np.asarray(_dropout(x, 0.25, jax.random.split(KEY, 8), 4))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    assert abs((y == 0).mean() - 0.25) < 0.02


@pytest.mark.parametrize(("size", "dropped"), [(256, 3), (128, 2), (64, 1), (32, 0), (16, 0)])
def test_as_many_levels_have_dropout_as_in_pytorch(twins, size, dropped):
    levels = multiple(Generator(image_size=size)).bit_length() - 1
    twin = twins.UNet(width=1, levels=levels)
    assert sum(isinstance(m, twins.nn.Dropout) for m in twin.modules()) == dropped
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    model = Generator(width=1, image_size=size)

    def call(key, x, keys):
        return model.init(key, x, train=False, keys=keys)

    text = str(jax.make_jaxpr(call)(KEY, x, jax.random.split(KEY, 1)))
    assert (
        text.count("random_fold_in")
        - str(jax.make_jaxpr(functools.partial(model.init, train=False))(KEY, x)).count(
            "random_fold_in"
        )
        == dropped
    )


def test_eight_devices_equal_one():
    x, keys = images(64, 64, n=8), jax.random.split(KEY, 8)
    model, variables = model_and_variables()
    there = Generator(width=2, image_size=64, axis_name="batch")

    def run(model, x, keys):
        return model.apply(variables, x, train=True, keys=keys, mutable=["batch_stats"])

    y, stats = jax.jit(functools.partial(run, model))(x, keys)
    each = jax.pmap(functools.partial(run, there), axis_name="batch")
    found, their = each(x[:, None], keys.reshape(8, 1))
    near(np.concatenate(found), y)
    jax.tree.map(lambda a, b: near(a[3], b), their, stats)


def test_initial_weights():
    init = functools.partial(Generator(width=8, levels=3).init, train=False)
    params = jax.jit(init)(KEY, images(8, 8))["params"]
    kernels = np.concatenate([np.ravel(v["kernel"]) for v in params.values() if "kernel" in v])
    scales = np.concatenate([v["scale"] for v in params.values() if "scale" in v])
    np.testing.assert_allclose(kernels.std(), 0.02, rtol=0.05)
    assert abs(scales.mean() - 1) < 0.01 and 0.015 < scales.std() < 0.025
    assert "bias" not in params["down_0"] and not np.any(params["up_0"]["bias"])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"levels": 4}, "of 4 levels takes sides that are multiples of 16, not 24x32"),
        ({"levels": 3, "norm": "bach"}, "no norm 'bach'. Did you mean 'batch'"),
    ],
)
def test_mistakes_are_told(fields, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(functools.partial(Generator(**fields).init), KEY, images(24, 32))
