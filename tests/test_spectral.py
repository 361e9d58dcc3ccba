"""Spectral normalisation against the singular value decomposition, and against PyTorch's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.conv import Conv, ConvTranspose, Dense
from aigc_jax.layers.spectral import spectral

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Used(nn.Module):
    """The kernel that a layer would use."""

    shape: tuple
    train: bool = True
    iterations: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.normal()

    @nn.compact
    def __call__(self):
        kernel = self.param("kernel", self.kernel_init, self.shape)
        return spectral(self.train, self.iterations)(self, kernel)


def largest(kernel):
    return np.linalg.svd(np.reshape(kernel, (-1, kernel.shape[-1])), compute_uv=False)[0]


def given(kernel, seed=1):
    u = normal(kernel.shape[-1], seed=seed)
    return {"params": {"kernel": kernel}, "spectral": {"u": u / np.linalg.norm(u)}}


SHAPES = pytest.mark.parametrize("shape", [(3, 3, 4, 6), (10, 7), (5, 1)], ids=str)


@SHAPES
def test_many_steps_find_the_largest_singular_value(shape):
    kernel = 5 * normal(*shape)
    found, changed = Used(shape, iterations=200).apply(given(kernel), mutable=["spectral"])
    np.testing.assert_allclose(found, kernel / largest(kernel), rtol=1e-4)
    matrix, u = kernel.reshape(-1, shape[-1]), changed["spectral"]["u"]
    right = np.linalg.svd(matrix, full_matrices=False)[2][0]
    np.testing.assert_allclose(u * np.sign(u @ right), right, atol=1e-3)


@SHAPES
def test_a_step_and_its_gradient_are_pytorchs(shape):
    torch = pytest.importorskip("torch")
    kernel, ct = normal(*shape), normal(*shape, seed=2)
    variables = given(kernel)
    axes = (3, 2, 0, 1) if len(shape) == 4 else (1, 0)
    layer = torch.nn.Conv2d(4, 6, 3) if len(shape) == 4 else torch.nn.Linear(*shape)
    layer = torch.nn.utils.spectral_norm(layer)
    to_torch = lambda x: torch.tensor(x.transpose(axes).copy())  # noqa: E731
    with torch.no_grad():
        layer.weight_orig.copy_(to_torch(kernel))
        layer.weight_u.copy_(torch.tensor(variables["spectral"]["u"]))
    layer(torch.zeros(1, 4, 3, 3) if len(shape) == 4 else torch.zeros(1, shape[0]))
    layer.weight.backward(to_torch(ct))

    def loss(kernel):
        now = variables | {"params": {"kernel": kernel}}
        used, changed = Used(shape).apply(now, mutable=["spectral"])
        return jnp.sum(used * ct), (used, changed["spectral"]["u"])

    gradient, (used, u) = jax.jit(jax.grad(loss, has_aux=True))(kernel)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
    close(used.transpose(axes), layer.weight.detach())
    close(u, layer.weight_u)
    close(gradient.transpose(axes), layer.weight_orig.grad)


@pytest.mark.parametrize("init", [nn.initializers.normal(0.02), nn.initializers.orthogonal()])
@pytest.mark.parametrize("shape", [(3, 3, 64, 32), (128, 200)], ids=str)
def test_first_call_is_near_in_evaluation_too(init, shape):
    found, _ = Used(shape, train=False, kernel_init=init).init_with_output(KEY)
    assert 0.95 < largest(found) < 1.05


def test_a_vector_moves_in_training_only_and_where_it_may():
    variables = given(normal(10, 7))
    old = variables["spectral"]["u"]
    moved = lambda **fields: Used((10, 7), **fields).apply(variables, mutable=["spectral"])  # noqa: E731
    trained, changed = moved()
    assert np.abs(changed["spectral"]["u"] - old).max() > 0.01
    evaluated, kept = moved(train=False)
    np.testing.assert_array_equal(kept["spectral"]["u"], old)
    for used in (evaluated, Used((10, 7)).apply(variables)):
        np.testing.assert_array_equal(used, trained)


def test_initialisation_in_training_takes_no_step_more():
    """The vector is that of evaluation: a first state doesn't depend on `train`."""
    trained, evaluated = (Used((10, 7), train=train).init(KEY) for train in (True, False))
    jax.tree.map(np.testing.assert_array_equal, trained, evaluated)


def test_scale_of_a_kernel_makes_no_difference_and_its_gradient_is_orthogonal():
    variables = given(normal(10, 7))
    used = lambda kernel: Used((10, 7), iterations=200).apply(  # noqa: E731
        variables | {"params": {"kernel": kernel}}
    )
    kernel = variables["params"]["kernel"]
    np.testing.assert_allclose(used(1e-3 * kernel), used(kernel), rtol=1e-4)
    slope = jax.grad(lambda kernel: jnp.sum(jnp.sin(used(kernel))))(kernel)
    assert abs(np.sum(slope * kernel)) < 1e-4 * np.linalg.norm(slope) * np.linalg.norm(kernel)


def test_a_kernel_of_zeros_stays_finite():
    variables = given(np.zeros((4, 3), np.float32))
    used, changed = Used((4, 3)).apply(variables, mutable=["spectral"])
    assert not used.any() and np.isfinite(changed["spectral"]["u"]).all()


@pytest.mark.parametrize("layer", [Conv, ConvTranspose, Dense])
def test_layers(layer):
    """A layer's output is that of the kernel divided by what NumPy finds, and its bias stays."""

    def far_from_the_second(key, shape, dtype):  # so that a few steps find it
        return 1 + 0.3 * jax.random.normal(key, shape, dtype)

    first = dict(kernel_init=far_from_the_second, bias_init=nn.initializers.ones)
    module, x = layer(6, reparam=spectral(True), **first), normal(2, 4, 4, 5)
    y, variables = jax.jit(module.init_with_output)(KEY, x)
    params = variables["params"]
    assert variables["spectral"]["u"].shape == params["kernel"].shape[-1:]
    plain = params | {"kernel": params["kernel"] / largest(params["kernel"])}
    expected = layer(6).apply({"params": plain}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [Conv, Dense])
def test_bfloat16_keeps_its_vector_in_float32(layer):
    x = normal(2, 4, 4, 5)
    module = layer(6, reparam=spectral(True))
    variables = jax.jit(module.init)(KEY, x)
    rough = module.clone(dtype=jnp.bfloat16)
    exact, kept = module.apply(variables, x, mutable=["spectral"])
    near, changed = rough.apply(variables, x, mutable=["spectral"])
    assert near.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((variables, changed))} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(changed["spectral"]["u"], kept["spectral"]["u"])
    np.testing.assert_allclose(near.astype(jnp.float32), exact, atol=0.02)
