"""The convolutions against lax's plain ones and PyTorch's, with the same weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.layers.conv import (
    Conv,
    ConvDownsample,
    ConvTranspose,
    Dense,
    UpsampleConv,
    conv,
    conv_downsample,
    conv_transpose,
    reflect_pad,
    upsample_conv,
)

# (height, width), kernel, stride, padding, groups, C, O of a convolution C -> O
CONVS = {
    "4x4 stride 2": ((8, 16), 4, 2, 1, 1, 12, 20),
    "4x4 stride 2, odd output": ((6, 10), 4, 2, 1, 1, 6, 5),
    "4x4 stride 2, odd input": ((7, 9), 4, 2, 1, 1, 6, 5),
    "4x4 stride 2, one pixel out": ((2, 2), 4, 2, 1, 1, 6, 5),
    "4x4 stride 2, grey": ((16, 16), 4, 2, 1, 1, 1, 20),
    "4x4 stride 2, RGB": ((10, 6), 4, 2, 1, 1, 3, 20),
    "4x4 stride 2, RGB and labels": ((16, 16), 4, 2, 1, 1, 13, 20),
    "4x4 to one pixel": ((4, 4), 4, 1, 0, 1, 12, 9),
    "4x4 valid": ((7, 7), 4, 1, 0, 1, 5, 3),
    "3x3": ((6, 10), 3, 1, 1, 1, 40, 36),
    "3x3, odd": ((7, 5), 3, 1, 1, 1, 36, 40),
    "3x3 valid": ((8, 9), 3, 1, 0, 1, 36, 40),
    "3x3 full": ((5, 4), 3, 1, 2, 1, 36, 40),
    "3x3, narrow": ((8, 8), 3, 1, 1, 1, 12, 10),
    "3x3 to RGB": ((8, 6), 3, 1, 1, 1, 12, 3),
    "3x3 stride 2": ((8, 8), 3, 2, 1, 1, 12, 10),
    "7x7 from RGB": ((9, 9), 7, 1, 3, 1, 3, 8),
    "7x7 from RGB, valid": ((9, 11), 7, 1, 0, 1, 3, 12),
    "7x7 to RGB": ((9, 8), 7, 1, 3, 1, 8, 3),
    "7x7 to RGB, valid": ((11, 9), 7, 1, 0, 1, 12, 3),
    "4x4 to logits": ((9, 8), 4, 1, 1, 1, 8, 1),
    "1x1": ((6, 6), 1, 1, 0, 1, 12, 10),
    "1x1 stride 2": ((6, 6), 1, 2, 0, 1, 12, 10),
    "5x5 stride 2": ((9, 8), 5, 2, 2, 1, 6, 5),
    "3x3 in 4 groups": ((8, 8), 3, 1, 1, 4, 64, 128),
    "3x3 in 3 groups, stride 2": ((7, 6), 3, 2, 1, 3, 12, 6),
    "depthwise 3x3": ((7, 6), 3, 1, 1, 24, 24, 24),
    "depthwise 5x5 stride 2": ((7, 6), 5, 2, 2, 24, 24, 24),
    "depthwise, two outputs a channel": ((7, 6), 3, 1, 1, 8, 8, 16),
}
table = pytest.mark.parametrize("name", CONVS)
# One of each form, for what holds of a form and not of a size.
FORMS = ["4x4 stride 2", "4x4 stride 2, RGB", "3x3", "3x3 to RGB", "3x3 in 4 groups"]
FORMS += ["3x3 valid", "3x3 stride 2", "7x7 from RGB"]
FORMS += ["depthwise 3x3", "4x4 to one pixel"]
forms = pytest.mark.parametrize("name", FORMS)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def operands(geometry, batch=4):
    (h, w), k, _, _, groups, channels, features = geometry
    return random(0, batch, h, w, channels), random(1, k, k, channels // groups, features)


def plain(geometry, x, kernel):
    _, _, stride, padding, groups, _, _ = geometry
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def ours(geometry, x, kernel):
    _, _, stride, padding, groups, _, _ = geometry
    return conv(x, kernel, stride, padding, groups)


def cotangent(function, *args):
    return random(2, *jax.eval_shape(function, *args).shape)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def assert_near(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert relative(np.asarray(a, np.float32), np.asarray(b, np.float32)) < tolerance


def value_and_vjp(function, ct):
    """A compiled function of the operands: its value and the gradients of the inner product."""

    @jax.jit
    def both(*args):
        value, vjp = jax.vjp(function, *args)
        return value, vjp(jnp.asarray(ct, value.dtype))

    return both


def second(function):
    """A gradient penalty: the gradients of |d/dx sum(tanh f(x, w))|^2 in both operands."""

    def penalty(x, w):
        return (jax.grad(lambda x: jnp.tanh(function(x, w)).sum())(x) ** 2).sum()

    return jax.jit(jax.grad(penalty, (0, 1)))


def small(w):
    """Scaled so that the tanh of the penalty does not saturate."""
    return w * np.float32(0.5 / np.sqrt(w[..., 0].size))


def torch_image(x):
    torch = pytest.importorskip("torch")
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)


def torch_kernel(w):
    torch = pytest.importorskip("torch")
    return torch.tensor(np.asarray(w).transpose(3, 2, 0, 1), requires_grad=True)


def from_torch(value, x, w):
    return (
        value.detach().numpy().transpose(0, 2, 3, 1),
        (x.grad.numpy().transpose(0, 2, 3, 1), w.grad.numpy().transpose(2, 3, 1, 0)),
    )


@functools.cache
def compiled(name):
    """Operands and cotangent of a row of the table, and our compiled value and gradients."""
    x, w = operands(CONVS[name])
    ct = cotangent(lambda *a: plain(CONVS[name], *a), x, w)
    return (x, w), ct, value_and_vjp(lambda *a: ours(CONVS[name], *a), ct).lower(x, w).compile()


@table
def test_conv_equals_plain(name):
    args, ct, both = compiled(name)
    assert_near(both(*args), value_and_vjp(lambda *a: plain(CONVS[name], *a), ct)(*args))


@table
def test_no_conditional_is_left(name):
    _, _, both = compiled(name)
    assert " conditional(" not in both.as_text()


@pytest.mark.parametrize(
    "name", ["4x4 stride 2", "4x4 stride 2, RGB", "3x3", "3x3 valid", "depthwise 3x3"]
)
def test_each_platform_gets_its_form(name):
    x, w = operands(CONVS[name])

    def count(platform):
        traced = value_and_vjp(lambda *a: ours(CONVS[name], *a), compiled(name)[1]).trace(x, w)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.convolution")

    assert (count("cpu"), count("tpu"), count("cuda")) == (0, 3, 3)


@table
def test_conv_equals_torch(name):
    functional = pytest.importorskip("torch.nn.functional")
    _, _, stride, padding, groups, _, _ = CONVS[name]
    (x, w), ct, both = compiled(name)
    tx, tw = torch_image(x), torch_kernel(w)
    ty = functional.conv2d(tx, tw, stride=stride, padding=padding, groups=groups)
    ty.backward(torch_image(ct))
    assert_near(both(x, w), from_torch(ty, tx, tw))


TRANSPOSES = [
    "4x4 stride 2",
    "4x4 stride 2, odd output",
    "4x4 stride 2, RGB",
    "4x4 to one pixel",
    "4x4 valid",
    "3x3",
    "3x3 valid",
    "3x3 stride 2",
    "7x7 from RGB",
    "7x7 to RGB",
    "1x1",
    "5x5 stride 2",
]


def transpose_operands(geometry):
    x, w = operands(geometry)
    y = jax.eval_shape(lambda *a: plain(geometry, *a), x, w)
    return random(3, *y.shape), w


def plain_transpose(geometry, y, w):
    """lax's own transposed convolution: dilate, pad, convolve with the flipped kernel."""
    _, k, stride, padding, _, _, _ = geometry
    return lax.conv_transpose(
        y,
        w[::-1, ::-1].swapaxes(2, 3),
        (stride, stride),
        [(k - 1 - padding, k - 1 - padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def our_transpose(geometry, y, w):
    return conv_transpose(y, w, geometry[2], geometry[3])


@functools.cache
def compiled_transpose(name):
    y, w = transpose_operands(CONVS[name])
    ct = cotangent(lambda *a: plain_transpose(CONVS[name], *a), y, w)
    return (y, w), ct, value_and_vjp(lambda *a: our_transpose(CONVS[name], *a), ct)


@pytest.mark.parametrize("name", TRANSPOSES)
def test_conv_transpose_equals_plain(name):
    args, ct, both = compiled_transpose(name)
    expected = value_and_vjp(lambda *a: plain_transpose(CONVS[name], *a), ct)(*args)
    assert_near(both(*args), expected)


@pytest.mark.parametrize("name", TRANSPOSES)
def test_conv_transpose_equals_torch(name):
    functional = pytest.importorskip("torch.nn.functional")
    (y, w), ct, both = compiled_transpose(name)
    ty, tw = torch_image(y), torch_kernel(w)
    tx = functional.conv_transpose2d(ty, tw, stride=CONVS[name][2], padding=CONVS[name][3])
    tx.backward(torch_image(ct))
    assert_near(both(y, w), from_torch(tx, ty, tw))


# kernel, stride, padding, output padding
PADDED = [(3, 2, 1, 1), (4, 2, 1, 1), (5, 3, 2, 2), (3, 2, 0, 1)]


@pytest.mark.parametrize(("k", "stride", "padding", "extra"), PADDED)
def test_output_padding_equals_torchs(k, stride, padding, extra):
    functional = pytest.importorskip("torch.nn.functional")
    y, w = random(0, 3, 5, 4, 12), random(1, k, k, 10, 12)
    ty, tw = torch_image(y), torch_kernel(w)
    tx = functional.conv_transpose2d(ty, tw, stride=stride, padding=padding, output_padding=extra)
    ct = random(2, *tx.permute(0, 2, 3, 1).shape)
    tx.backward(torch_image(ct))
    both = value_and_vjp(lambda *a: conv_transpose(*a, stride, padding, extra), ct)
    assert_near(both(y, w), from_torch(tx, ty, tw))


@pytest.mark.parametrize(("shape", "size"), [((5, 7), 3), ((4, 4), 1), ((2, 9), 1)])
def test_reflect_pad_equals_torchs(shape, size):
    functional = pytest.importorskip("torch.nn.functional")
    x = random(0, 2, *shape, 3)
    tx = torch_image(x)
    ty = functional.pad(tx, [size] * 4, "reflect")
    ct = random(1, *ty.permute(0, 2, 3, 1).shape)
    ty.backward(torch_image(ct))
    y, (dx,) = value_and_vjp(functools.partial(reflect_pad, size=size), ct)(x)
    assert_near((y, dx), (from_torch(ty, tx, tx)[0], from_torch(ty, tx, tx)[1][0]))


@pytest.mark.parametrize("side", [(4, 4), (5, 3)])
def test_upsample_conv(side):
    x, w = random(0, 2, *side, 12), random(1, 3, 3, 12, 7)

    def repeat_then_conv(x, w):
        return plain((None, 3, 1, 1, 1, None, None), x.repeat(2, 1).repeat(2, 2), w)

    ct = cotangent(repeat_then_conv, x, w)
    assert_near(value_and_vjp(upsample_conv, ct)(x, w), value_and_vjp(repeat_then_conv, ct)(x, w))


# height, width, channels, features: wide, from RGB, and of one pixel
HALVED = [(8, 6, 12, 7), (4, 8, 3, 20), (2, 2, 5, 36)]


def conv_then_mean(x, w):
    y = plain((None, 3, 1, 1, 1, None, None), x, w)
    b, h, w, c = y.shape
    return y.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


@pytest.mark.parametrize("shape", HALVED)
def test_conv_downsample_equals_torchs_convolution_and_pooling(shape):
    functional = pytest.importorskip("torch.nn.functional")
    *side, channels, features = shape
    x, w = random(0, 2, *side, channels), random(1, 3, 3, channels, features)
    ct = random(2, 2, side[0] // 2, side[1] // 2, features)
    tx, tw = torch_image(x), torch_kernel(w)
    ty = functional.avg_pool2d(functional.conv2d(tx, tw, padding=1), 2)
    ty.backward(torch_image(ct))
    assert_near(value_and_vjp(conv_downsample, ct)(x, w), from_torch(ty, tx, tw))


@pytest.mark.parametrize("shape", HALVED)
def test_conv_downsample_and_its_gradients_of_two_orders(shape):
    *side, channels, features = shape
    x, w = random(0, 2, *side, channels), small(random(1, 3, 3, channels, features))
    ct = cotangent(conv_then_mean, x, w)
    assert_near(value_and_vjp(conv_downsample, ct)(x, w), value_and_vjp(conv_then_mean, ct)(x, w))
    assert_near(second(conv_downsample)(x, w), second(conv_then_mean)(x, w), 2e-5)


def test_conv_downsample_is_the_adjoint_of_upsample_conv():
    """A quarter of it, for a mean is a quarter of a sum: <up(x), y> = 4 <x, down(y)>."""
    x, y, w = random(0, 2, 4, 3, 5), random(1, 2, 8, 6, 7), random(2, 3, 3, 5, 7)
    up = jnp.sum(upsample_conv(x, w) * y)
    down = jnp.sum(x * conv_downsample(y, w[::-1, ::-1].swapaxes(2, 3)))
    np.testing.assert_allclose(up, 4 * down, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_equals_linens(bias, dtype):
    module = Dense(7, bias, dtype=dtype, bias_init=jax.nn.initializers.ones)
    x, ct = random(0, 2, 4, 3, 12), random(1, 2, 4, 3, 7)
    linens = nn.Dense(7, bias, dtype=dtype)
    variables = module.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, linens.init(jax.random.key(0), x)
    )
    both = value_and_vjp(module.apply, ct)(variables, x)
    assert both[0].dtype == (dtype or jnp.float32)
    assert_near(both, value_and_vjp(linens.apply, ct)(variables, x), 1e-2 if dtype else 1e-5)


@pytest.mark.parametrize("layer", [Conv, ConvTranspose, UpsampleConv, ConvDownsample, Dense])
def test_hook_sees_the_layer_and_makes_the_kernel_it_uses(layer):
    def reparam(module, kernel):
        assert isinstance(module, layer) and kernel.dtype == jnp.float32
        return kernel * module.variable("scales", "scale", lambda: jnp.full((), 3.0)).value

    x = random(0, 2, 4, 6, 5)
    module = layer(7, reparam=reparam, bias_init=jax.nn.initializers.ones)
    y, variables = jax.jit(module.init_with_output)(jax.random.key(0), x)
    assert variables["scales"]["scale"] == 3
    params = variables["params"]
    expected = layer(7).apply({"params": params | {"kernel": 3 * params["kernel"]}}, x)
    assert_near(y, expected)
    half = module.clone(dtype=jnp.bfloat16).apply(variables, x)
    assert half.dtype == jnp.bfloat16
    assert_near(half, expected, 2e-2)


@forms
def test_second_derivatives(name):
    x, w = operands(CONVS[name], batch=2)
    w = small(w)
    f, g = (lambda *a: ours(CONVS[name], *a)), (lambda *a: plain(CONVS[name], *a))
    assert_near(second(f)(x, w), second(g)(x, w), 2e-5)


@pytest.mark.parametrize("name", ["4x4 stride 2", "4x4 stride 2, RGB"])
def test_second_derivatives_of_the_transpose(name):
    y, w = transpose_operands(CONVS[name])
    w = small(w)
    f, g = (
        (lambda *a: our_transpose(CONVS[name], *a)),
        (lambda *a: plain_transpose(CONVS[name], *a)),
    )
    assert_near(second(f)(y, w), second(g)(y, w), 2e-5)


def test_gradient_penalty_equals_torch():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torch.nn.functional")
    geometry = CONVS["4x4 stride 2, RGB"]
    x, w = operands(geometry)
    w = small(w)
    tx, tw = torch_image(x), torch_kernel(w)
    out = torch.tanh(functional.conv2d(tx, tw, stride=2, padding=1)).sum()
    (gradient,) = torch.autograd.grad(out, tx, create_graph=True)
    (gradient**2).sum().backward()
    _, expected = from_torch(tx, tx, tw)
    assert_near(second(lambda *a: ours(geometry, *a))(x, w), expected, 2e-5)


def both_under_vmap(name, axes):
    x, w = operands(CONVS[name], batch=2)
    args = [
        a if axis is None else np.stack([a, 2 * a]) for a, axis in zip((x, w), axes, strict=True)
    ]
    ct = cotangent(lambda *a: plain(CONVS[name], *a), x, w)
    f = jax.vmap(value_and_vjp(lambda *a: ours(CONVS[name], *a), ct), axes)
    g = jax.vmap(value_and_vjp(lambda *a: plain(CONVS[name], *a), ct), axes)
    return f(*args), g(*args)


@forms
def test_vmap(name):
    assert_near(*both_under_vmap(name, (0, 0)))


@pytest.mark.parametrize("axes", [(0, None), (None, 0)])
def test_vmap_of_one_operand(axes):
    assert_near(*both_under_vmap("4x4 stride 2, RGB", axes))


@forms
def test_bfloat16(name):
    args, ct, both = compiled(name)
    half = [jnp.asarray(a, jnp.bfloat16) for a in args]
    value, gradients = value_and_vjp(lambda *a: ours(CONVS[name], *a), ct)(*half)
    assert {a.dtype for a in (value, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    assert_near((value, gradients), both(*args), 2e-2)


def test_pmap():
    geometry = CONVS["4x4 stride 2, RGB"]
    x, w = operands(geometry, batch=8)
    ct = cotangent(lambda *a: plain(geometry, *a), x[:1], w)
    both = value_and_vjp(lambda *a: ours(geometry, *a), ct)
    value, (dx, dw) = jax.pmap(both, in_axes=(0, None))(x[:, None], w)
    ct = np.concatenate([ct] * 8)
    expected = value_and_vjp(lambda *a: plain(geometry, *a), ct)(x, w)
    assert_near((value[:, 0], (dx[:, 0], dw.sum(0))), expected)


@pytest.mark.parametrize(
    ("module", "kernel", "output"),
    [
        (Conv(16), (3, 3, 12, 16), (2, 8, 8, 16)),
        (Conv(16, 4, 2, 1, use_bias=False), (4, 4, 12, 16), (2, 4, 4, 16)),
        (Conv(24, (3, 5), groups=4), (3, 5, 3, 24), (2, 8, 8, 24)),
        (ConvTranspose(16), (4, 4, 16, 12), (2, 16, 16, 16)),
        (ConvTranspose(16, 3, 1, 0), (3, 3, 16, 12), (2, 10, 10, 16)),
        (UpsampleConv(16), (3, 3, 12, 16), (2, 16, 16, 16)),
        (ConvDownsample(16), (3, 3, 12, 16), (2, 4, 4, 16)),
        (ConvDownsample(16, use_bias=False), (3, 3, 12, 16), (2, 4, 4, 16)),
        (Dense(16), (12, 16), (2, 8, 8, 16)),
        (Dense(16, use_bias=False), (12, 16), (2, 8, 8, 16)),
    ],
)
def test_module_parameters(module, kernel, output):
    x = random(0, 2, 8, 8, 12)
    y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    shapes = {"kernel": kernel, "bias": (module.features,)}
    if not module.use_bias:
        del shapes["bias"]
    assert jax.tree.map(jnp.shape, variables["params"]) == shapes
    assert y.shape == output


def test_module_uses_its_bias_and_dtypes():
    x = random(0, 2, 8, 8, 12)
    module = Conv(16, dtype=jnp.bfloat16, bias_init=jax.nn.initializers.constant(100.0))
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert 90 < y.mean() < 110


@pytest.mark.parametrize(
    ("module", "fan_in"),
    [
        (Conv(256), 9 * 64),
        (Conv(256, groups=4), 9 * 16),
        (UpsampleConv(256), 9 * 64),
        (ConvDownsample(256), 9 * 64),
        (Dense(256), 64),
    ],
)
def test_initial_scale(module, fan_in):
    kernel = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
    assert abs(kernel.std() * np.sqrt(fan_in) - 1) < 0.02


def test_initial_scale_of_the_transpose():
    module = ConvTranspose(256)
    kernel = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
    assert abs(kernel.std() * np.sqrt(16 * 64) - 1) < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 3, 8))), r"4 channels.*3 channels"),
        (lambda: conv(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 2, 7)), groups=2), "divide 7"),
        (lambda: conv(jnp.zeros((1, 2, 2, 4)), jnp.zeros((4, 4, 4, 8)), padding=0), "larger image"),
        (lambda: conv_transpose(jnp.zeros((1, 8, 8, 4)), jnp.zeros((4, 4, 4, 8))), "takes 8"),
        (
            lambda: conv_transpose(jnp.zeros((1, 1, 1, 4)), jnp.zeros((2, 2, 3, 4)), 1, 1),
            "smaller padding",
        ),
        (
            lambda: conv_transpose(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 3, 4)), 2, 1, 2),
            "output_padding 2 must be below the stride 2",
        ),
        (lambda: reflect_pad(jnp.zeros((1, 3, 8, 4)), 3), "border of 3 mirrored pixels"),
        (lambda: upsample_conv(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 3, 8))), r"\(3, 3, 4"),
        (lambda: upsample_conv(jnp.zeros((1, 8, 8, 4)), jnp.zeros((4, 4, 4, 8))), r"\(3, 3, 4"),
        (lambda: conv_downsample(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 3, 8))), r"\(3, 3, 4"),
        (lambda: conv_downsample(jnp.zeros((1, 8, 8, 4)), jnp.zeros((4, 4, 4, 8))), r"\(3, 3, 4"),
        (lambda: conv_downsample(jnp.zeros((1, 7, 8, 4)), jnp.zeros((3, 3, 4, 8))), "must be even"),
        (lambda: conv_downsample(jnp.zeros((1, 8, 7, 4)), jnp.zeros((3, 3, 4, 8))), "must be even"),
        (
            lambda: Conv(8, groups=3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 4))),
            "groups=3 must divide",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "geometry",
    [
        ((8, 8), 4, 1, 1, 1, 8, 16),
        ((8, 8), 4, 1, 1, 1, 8, 1),
        ((8, 8), 3, 2, 1, 1, 12, 10),
        ((8, 8), 7, 1, 3, 1, 3, 10),
        ((15, 16), 5, 2, 2, 1, 6, 5),
        ((8, 8), 3, 1, 1, 4, 64, 128),
    ],
    ids=str,
)
def test_gradients_within_control_flow_are_what_xla_on_cpu_is_fast_at(geometry):
    """There it takes a convolution as it comes: those of another order, hundreds of times slower.

    (It swaps the operands itself where the kernel is larger than the image.)
    """
    x, kernel = operands(geometry)

    def loss(x, kernel):
        return (ours(geometry, x, kernel) ** 2).sum()

    def steps(x, kernel):
        def step(carry, _):
            return jax.tree.map(jnp.add, carry, jax.grad(loss, (0, 1))(*carry)), None

        return lax.scan(step, (x, kernel), None, 2)[0]

    text = jax.jit(steps).lower(x, kernel).compile().as_text()
    assert set(re.findall(r"dim_labels=([^,\s]+)", text)) == {"b01f_01io->b01f"}
