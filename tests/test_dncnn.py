"""DnCNN against PyTorch with the same weights, and the published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.shuffle import shuffle, unshuffle
from aigc_jax.models.dncnn import Restorer, multiple
from aigc_jax.models.torch_restorers import from_torch

KEY = jax.random.key(0)


def images(height=12, width=10, channels=1, n=2):
    shape = (n, height, width, channels)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture
def twins():
    return pytest.importorskip("torch_twins")


@pytest.fixture
def restorer_twins():
    return pytest.importorskip("restorer_twins")


def near(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, tolerance, tolerance * np.abs(expected).max())


def variables_of(model, x, seed=0):
    """Variables of a healthy size, without running `init`."""
    like, rng = jax.eval_shape(model.init, KEY, x), np.random.default_rng(seed)

    def values(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, (2 / np.prod(leaf.shape[:3])) ** 0.5, leaf.shape).astype("f4")
        return rng.uniform(0.5, 1.5, leaf.shape).astype("f4") - (name in ("bias", "mean"))

    return jax.tree_util.tree_map_with_path(values, like)


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({}, 556_097),  # DnCNN-S
        ({"use_bias": False}, 556_032),
        ({"depth": 20, "use_bias": False}, 667_008),
        ({"norm": "none"}, 555_137),
        ({"depth": 20, "channels": 3, "norm": "none"}, 668_227),
    ],
)
def test_published_sizes(fields, parameters):
    model = Restorer(**fields)
    params = jax.eval_shape(model.init, KEY, images(channels=model.channels))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize("train", [True, False])
def test_outputs_gradients_and_statistics_equal_torchs(twins, restorer_twins, train):
    twin = twins.spread(restorer_twins.dncnn(3, 5, 8)).train(train)
    module, variables = from_torch(twins.arrays(twin))
    x = images(channels=3)
    tx = twins.nchw(x).requires_grad_()
    expected = tx - 2 * twin((tx + 1) / 2)  # images in [0, 1] go in there
    ct = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    (expected * twins.nchw(ct)).sum().backward()
    call = functools.partial(module.apply, train=train, mutable=["batch_stats"])

    @jax.jit
    def both(params, x):
        function = lambda p, x: call({**variables, "params": p}, x)  # noqa: E731
        y, pullback, new = jax.vjp(function, params, x, has_aux=True)
        return y, pullback(ct), new

    y, (by_weight, by_image), new = both(variables["params"], x)
    near(y, twins.nhwc(expected))
    near(by_image, twins.nhwc(tx.grad))
    gradients = twins.arrays(twin) | {n: p.grad.numpy() for n, p in twin.named_parameters()}
    jax.tree.map(near, by_weight, from_torch(gradients)[1]["params"])
    running = from_torch(twins.arrays(twin))[1]["batch_stats"]
    jax.tree.map(functools.partial(near, tolerance=1e-5), new["batch_stats"], running)


def test_shuffle_sees_blocks_as_channels():
    """It is the network of four times the channels on the shuffled image."""
    model, there = Restorer(3, 4, 8, shuffle=2), Restorer(12, 4, 8)
    x = images(channels=3)
    variables = variables_of(model, x)
    assert variables["params"]["first"]["kernel"].shape == (3, 3, 12, 8)
    y = jax.jit(model.apply)(variables, x)
    near(y, shuffle(jax.jit(there.apply)(variables, unshuffle(x, 2)), 2))
    assert multiple(model) == 2 and multiple(there) == 1


def test_without_norm_and_biases_brighter_images_are_restored_alike():
    """f(a x) = a f(x), where black is 0 (Mohan et al. 2020, section 3)."""
    model = Restorer(1, 5, 8, norm="none", use_bias=False)
    x = images()
    variables = variables_of(model, x)
    restore = jax.jit(lambda light: (model.apply(variables, 2 * light - 1) + 1) / 2)
    near(restore(0.3 * (x + 1)), 0.3 * restore(x + 1), 1e-4)
    biased = Restorer(1, 5, 8, norm="none")
    assert set(jax.eval_shape(biased.init, KEY, x)["params"]["conv_1"]) == {"kernel", "bias"}


def test_initial_weights():
    params = jax.jit(Restorer(3, 8, 64).init)(KEY, images(channels=3))["params"]
    for layer in ("first", "conv_3", "last"):
        kernel, std = params[layer]["kernel"], (2 / 576) ** 0.5
        np.testing.assert_allclose(kernel.std(), std, rtol=0.05)
    scales = np.concatenate([params[f"norm_{i}"]["scale"] for i in range(1, 7)])
    assert np.abs(scales).min() >= 0.025 and 0.3 < (scales < 0).mean() < 0.7
    np.testing.assert_allclose(scales.std(), 0.059, rtol=0.15)
    assert set(params["conv_1"]) == {"kernel"} and not np.any(params["last"]["bias"])


def test_eight_devices_equal_one():
    x = images(n=8)
    model = Restorer(1, 4, 8)
    variables = variables_of(model, x)

    def run(model, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    y, stats = jax.jit(functools.partial(run, model))(x)
    there = Restorer(1, 4, 8, axis_name="batch")
    found, their = jax.pmap(functools.partial(run, there), axis_name="batch")(x[:, None])
    near(np.concatenate(found), y)
    jax.tree.map(lambda a, b: near(a[3], b), their, stats)


def test_half_precision_comes_back_whole():
    """What isn't noise keeps the precision that it came in."""
    model = Restorer(1, 4, 8, norm="none", dtype=jnp.bfloat16)
    x = images()
    variables = jax.tree.map(jnp.zeros_like, variables_of(model, x))
    y = model.apply(variables, x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"norm": "bach"}, "no norm 'bach'. Did you mean 'batch'"),
        ({"depth": 2}, "depth 2 and shuffle 1: take a depth of at least 3"),
        ({"shuffle": 3}, "depth 17 and shuffle 3"),
        ({"shuffle": 2}, "shuffle 2 takes sides that are multiples of it, not 13x10"),
    ],
)
def test_mistakes_are_told(fields, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(Restorer(**fields).init, KEY, images(13))


def test_holes_are_told():
    x = images()
    with pytest.raises(UserError, match="dncnn takes no mask"):
        jax.eval_shape(Restorer().init, KEY, x, jnp.ones_like(x))
