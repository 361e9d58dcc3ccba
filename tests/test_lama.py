"""LaMa's network against PyTorch with the same weights, and the published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.lama import Restorer, multiple

KEY = jax.random.key(0)
FIELDS = dict(width=4, levels=2, blocks=1)


def images(height=16, width=12, channels=3, n=2):
    shape = (n, height, width, channels)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def known(height=16, width=12, n=2):
    mask = np.random.default_rng(1).uniform(size=(n, height, width, 1)) < 0.7
    return mask.astype(np.float32)


@pytest.fixture
def twins():
    return pytest.importorskip("torch_twins")


@pytest.fixture
def restorer_twins():
    return pytest.importorskip("restorer_twins")


def near(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, tolerance, tolerance * np.abs(expected).max())


def ours(arrays, levels=2, blocks=1):
    """Our variables by the twin's arrays (or gradients); branches of a layer are joined."""
    variables = {"params": {}, "batch_stats": {}}

    def put(path, name, array, collection="params"):
        tree = variables[collection]
        for part in path.split("/"):
            tree = tree.setdefault(part, {})
        tree[name] = array

    def kernel(path, *keys):
        joined = np.concatenate([arrays[f"{key}.weight"] for key in keys])
        put(path, "kernel", joined.transpose(2, 3, 1, 0))

    def norm(path, *keys):
        for name, theirs in (("scale", "weight"), ("bias", "bias")):
            put(path, name, np.concatenate([arrays[f"{key}.{theirs}"] for key in keys]))
        for name in ("mean", "var"):
            found = np.concatenate([arrays[f"{key}.running_{name}"] for key in keys])
            put(path, name, found, "batch_stats")

    kernel("first", "first")
    norm("first_norm", "first_norm")
    kernel("last", "last")
    put("last", "bias", arrays["last.bias"])
    for i in range(levels):
        kernel(f"down_{i}", f"downs.{i}")
        norm(f"down_norm_{i}", f"down_norms.{i}")
        kernel(f"up_{i}", f"ups.{i}")  # (in, out, k, k), whose convolution is out -> in
        put(f"up_{i}", "bias", arrays[f"ups.{i}.bias"])
        norm(f"up_norm_{i}", f"up_norms.{i}")
    for i in range(2 * blocks):
        layer, key = f"block_{i // 2}_{'ab'[i % 2]}", f"blocks.{i}"
        kernel(f"{layer}/from_local", f"{key}.l2l", f"{key}.l2g")
        kernel(f"{layer}/global_to_local", f"{key}.g2l")
        norm(f"{layer}/norm", f"{key}.norm_l", f"{key}.norm_g")
        for name in ("reduce", "spectral", "expand"):
            kernel(f"{layer}/global_to_global/{name}", f"{key}.g2g.{name}")
        for name in ("reduce_norm", "spectral_norm"):
            norm(f"{layer}/global_to_global/{name}", f"{key}.g2g.{name}")
    return variables


@pytest.mark.parametrize(("blocks", "parameters"), [(9, 27_048_835), (18, 50_975_875)])
def test_published_sizes(restorer_twins, blocks, parameters):
    """27M and 51M in the paper."""
    model = Restorer(blocks=blocks)
    params = jax.eval_shape(model.init, KEY, images(16, 16))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    with restorer_twins.torch.device("meta"):
        twin = restorer_twins.Lama(blocks=blocks)
    assert sum(p.numel() for p in twin.parameters()) == parameters


@pytest.mark.parametrize("train", [True, False])
def test_outputs_gradients_and_statistics_equal_torchs(twins, restorer_twins, train):
    twin = twins.spread(restorer_twins.Lama(**FIELDS)).train(train)
    model, mask = Restorer(**FIELDS), known()
    x = images() * mask
    variables = ours(twins.arrays(twin))
    like = jax.eval_shape(model.init, KEY, x, mask)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), variables, dict(like))
    tx = twins.nchw(x).requires_grad_()
    expected = twin(tx, twins.nchw(mask))
    ct = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    (expected * twins.nchw(ct)).sum().backward()
    call = functools.partial(model.apply, mask=mask, train=train, mutable=["batch_stats"])

    @jax.jit
    def both(params, x):
        function = lambda p, x: call({**variables, "params": p}, x)  # noqa: E731
        y, pullback, new = jax.vjp(function, params, x, has_aux=True)
        return y, pullback(ct), new

    y, (by_weight, by_image), new = both(variables["params"], x)
    assert np.abs(y).mean() > 0.1 and np.abs(y).max() <= 1
    near(y, twins.nhwc(expected))
    near(by_image, twins.nhwc(tx.grad), 1e-3)
    gradients = twins.arrays(twin) | {n: p.grad.numpy() for n, p in twin.named_parameters()}
    wanted = ours(gradients)["params"]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4 * largest)
    jax.tree.map(compare, by_weight, wanted)
    jax.tree.map(near, new["batch_stats"], ours(twins.arrays(twin))["batch_stats"])


def variables_of(model, x):
    like, rng = jax.eval_shape(model.init, KEY, x), np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.uniform(-0.2, 0.5, a.shape).astype("f4") ** 2, like)


def test_eight_devices_equal_one():
    x, mask = images(n=8), known(n=8)
    fields = dict(width=4, levels=1, blocks=1)
    variables = variables_of(Restorer(**fields), x)

    def run(model, x, mask):
        return model.apply(variables, x, mask, train=True, mutable=["batch_stats"])

    y, stats = jax.jit(functools.partial(run, Restorer(**fields)))(x, mask)
    there = functools.partial(run, Restorer(**fields, axis_name="batch"))
    found, their = jax.pmap(there, axis_name="batch")(x[:, None], mask[:, None])
    near(np.concatenate(found), y)
    jax.tree.map(lambda a, b: near(a[3], b), their, stats)


def test_without_a_mask_all_is_known():
    model, x = Restorer(width=4, levels=1, blocks=1), images()
    run = jax.jit(functools.partial(model.apply, variables_of(model, x)))
    np.testing.assert_array_equal(run(x), run(x, np.ones((2, 16, 12, 1), np.float32)))
    assert np.abs(run(x) - run(x, known())).max() > 1e-4
    half = Restorer(width=4, levels=1, blocks=1, dtype=jnp.bfloat16)
    y = jax.jit(functools.partial(half.apply, variables_of(model, x)))(x)
    assert y.dtype == jnp.float32
    near(y, run(x), 0.05)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"share": 1.0}, "lama's share is 1.0: take one between 0 and 1"),
        ({}, "lama of 3 levels takes sides that are multiples of 8, at least 16, not 8x16"),
        ({"levels": 4}, "multiples of 16"),
    ],
)
def test_mistakes_are_told(fields, line):
    assert multiple(Restorer()) == 8
    with pytest.raises(UserError, match=line):
        jax.eval_shape(Restorer(**fields).init, KEY, images(8, 16))
