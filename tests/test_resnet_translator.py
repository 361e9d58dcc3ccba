"""The residual generator against PyTorch with the same weights, and the published sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.resnet_translator import Generator, multiple
from aigc_jax.models.torch_translators import from_torch

KEY = jax.random.key(0)


def images(height=16, width=16, channels=3, n=2):
    shape = (n, height, width, channels)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture
def twins():
    return pytest.importorskip("torch_twins")


def near(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, tolerance, tolerance * np.abs(expected).max())


def count(model, **fields):
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    init = functools.partial(model(**fields).init, train=False)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, KEY, x)))


@pytest.mark.parametrize(("blocks", "parameters"), [(9, 11_378_179), (6, 7_837_699)])
@pytest.mark.parametrize("resample", ["transpose", "nearest", "blur"])
def test_published_sizes(blocks, parameters, resample):
    assert count(Generator, blocks=blocks, resample=resample) == parameters


@pytest.mark.parametrize(("shape", "blur"), [((12, 20), False), ((24, 12), True)])
def test_outputs_and_gradients_equal_torchs(twins, shape, blur):
    twin = twins.spread(twins.ResNet(3, 2, width=4, blocks=2, blur=blur))
    module, variables = from_torch(twins.arrays(twin))
    assert module == Generator(2, 4, 2, "blur" if blur else "transpose")
    x = images(*shape)
    tx = twins.nchw(x).requires_grad_()
    expected = twin(tx)
    ct = np.random.default_rng(1).normal(size=(2, *shape, 2)).astype(np.float32)
    (expected * twins.nchw(ct)).sum().backward()

    @jax.jit
    def both(variables, x):
        y, pullback = jax.vjp(module.apply, variables, x)
        return y, pullback(ct)

    y, (by_weight, by_image) = both(variables, x)
    near(y, twins.nhwc(expected))
    near(by_image, twins.nhwc(tx.grad))
    gradients = twins.arrays(twin) | {n: p.grad.numpy() for n, p in twin.named_parameters()}
    wanted = from_torch(gradients)[1]
    # Biases before a norm have no gradient but what rounding leaves.
    for path, gradient in jax.tree_util.tree_leaves_with_path(by_weight):
        if path[-1].key == "kernel" or path[-2].key == "last":
            near(gradient, wanted["params"][path[-2].key][path[-1].key], 2e-4)
        else:
            assert np.abs(gradient).max() < 1e-3


@pytest.mark.parametrize(("blocks", "last"), [(6, 16), (3, 14)])
def test_encode_is_the_published_layers(twins, blocks, last):
    twin = twins.spread(twins.ResNet(3, 3, width=4, blocks=blocks, blur=True))
    module, variables = from_torch(twins.arrays(twin))
    x = images(16, 24)
    found = jax.jit(functools.partial(module.apply, method="encode"))(variables, x)
    y, expected = twins.nchw(x), {}
    for i, layer in enumerate(twin.model):
        y = layer(y)
        expected[i] = y
    assert [f.shape[-1] for f in found] == [3, 8, 16, 16, 16]
    for actual, i in zip(found, (0, 4, 8, 12, last), strict=True):
        near(actual, twins.nhwc(expected[i]))


def test_nearest_upsampling_is_a_convolution_of_repeated_pixels():
    model = Generator(width=4, blocks=1, resample="nearest")
    x = images(8, 12)
    y, variables = jax.jit(model.init_with_output)(KEY, x)
    assert y.shape == x.shape
    assert jax.tree.map(jnp.shape, variables["params"]["ups_0"]) == {
        "kernel": (3, 3, 16, 8),
        "bias": (8,),
    }


def test_initial_weights():
    params = jax.jit(Generator(width=16, blocks=1).init)(KEY, images(8, 8))["params"]
    for layer in params.values():
        np.testing.assert_allclose(layer["kernel"].std(), 0.02, rtol=0.1)
        assert not np.any(layer["bias"])
    params = jax.jit(Generator(width=16, blocks=2, resample="blur", init_gain=0).init)(
        KEY, images()
    )
    for layer in params["params"].values():
        h, w, c, o = layer["kernel"].shape
        std = 0.02 * np.sqrt(2 / (h * w * (c + o)))
        np.testing.assert_allclose(layer["kernel"].std(), std, rtol=0.1)


def test_bfloat16_is_of_the_inside_alone():
    model = Generator(width=4, blocks=1, dtype=jnp.bfloat16)
    x = images()
    y, variables = jax.jit(model.init_with_output)(KEY, x)
    assert y.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_multiple():
    assert multiple(Generator()) == 4


@pytest.mark.parametrize(
    ("fields", "shape", "line"),
    [
        ({}, (16, 18), "multiples of 4, not 16x18"),
        ({}, (4, 4), "larger than 1"),
        ({"resample": "blurr"}, (16, 16), "Did you mean 'blur'"),
    ],
)
def test_mistakes_are_told(fields, shape, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(Generator(width=4, **fields).init, KEY, images(*shape))
