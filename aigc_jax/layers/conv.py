"""Convolutions of image networks: as functions of arrays, and as Linen modules."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from aigc_jax.errors import UserError
from aigc_jax.layers import _fast_conv
from aigc_jax.layers._fast_conv import Geometry
from aigc_jax.types import Array

Initializer = jax.nn.initializers.Initializer
# What a layer does to its kernel before it uses it, given the layer itself: `spectral.normalized`.
Reparametrization = Callable[[nn.Module, Array], Array]


def conv(
    x: Array, kernel: Array, stride: int = 1, padding: int | None = None, groups: int = 1
) -> Array:
    """Cross-correlation with zeros around the image: PyTorch's `F.conv2d`.

    x: (B, H, W, C); kernel: (kh, kw, C // groups, O). Returns (B, h, w, O) with
    h = (H + 2 * padding - kh) // stride + 1, in the common dtype of both. `padding` is the number
    of zeros on each side; None is (k - 1) // 2, which keeps the size for odd k and stride 1.
    Raises UserError if the channels do not fit or the image is smaller than the kernel.
    """
    x, kernel = promote_dtype(x, kernel)
    kh, kw, channels, features = kernel.shape
    if x.shape[-1] != channels * groups or features % groups:
        raise UserError(
            f"conv: an input of shape {x.shape} has {x.shape[-1]} channels, which does not fit a "
            f"kernel of shape {kernel.shape} in {groups} group(s); the input must have "
            f"{channels * groups} channels, and groups must divide {features}."
        )
    pad = ((kh - 1) // 2, (kw - 1) // 2) if padding is None else (padding, padding)
    geometry = Geometry(x.shape[1:3], (kh, kw), (stride, stride), pad, groups)
    if min(geometry.output) < 1:
        raise UserError(
            f"conv: a {kh}x{kw} kernel is larger than an image of shape {x.shape} with padding "
            f"{pad}; use a larger image or fewer layers."
        )
    return _fast_conv.conv(geometry, x, kernel)


def conv_transpose(
    y: Array, kernel: Array, stride: int = 1, padding: int = 0, output_padding: int = 0
) -> Array:
    """The adjoint of `conv` in its input: PyTorch's `F.conv_transpose2d`.

    y: (B, h, w, O); kernel: (kh, kw, C, O), that of the convolution C -> O whose adjoint this is.
    Returns (B, H, W, C) with H = (h - 1) * stride + kh - 2 * padding + output_padding, in the
    common dtype of both. `output_padding` chooses among the sizes that the convolution maps to
    (h, w). Raises UserError if the channels do not fit, or it is not below the stride.
    """
    y, kernel = promote_dtype(y, kernel)
    kh, kw, _, features = kernel.shape
    if y.shape[-1] != features:
        raise UserError(
            f"conv_transpose: an input of shape {y.shape} has {y.shape[-1]} channels, but a kernel "
            f"of shape {kernel.shape} (height, width, out, in) takes {features}."
        )
    if output_padding >= stride:
        raise UserError(
            f"conv_transpose: output_padding {output_padding} must be below the stride {stride}."
        )
    height = (y.shape[1] - 1) * stride + kh - 2 * padding + output_padding
    width = (y.shape[2] - 1) * stride + kw - 2 * padding + output_padding
    if min(height, width) < 1:
        raise UserError(
            f"conv_transpose: padding {padding} leaves nothing of an input of shape {y.shape} "
            f"with a {kh}x{kw} kernel and stride {stride}; use a smaller padding."
        )
    geometry = Geometry((height, width), (kh, kw), (stride, stride), (padding, padding))
    return _fast_conv.conv_transpose(geometry, y, kernel)


def upsample_conv(x: Array, kernel: Array) -> Array:
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution of unchanged size.

    x: (B, H, W, C); kernel: (3, 3, C, O). Returns (B, 2H, 2W, O), in the common dtype of both.
    Raises UserError if the channels do not fit or the kernel is not 3x3.
    """
    if kernel.shape[:2] != (3, 3) or kernel.shape[2] != x.shape[-1]:
        raise UserError(
            f"upsample_conv: an input of shape {x.shape} needs a kernel of shape "
            f"(3, 3, {x.shape[-1]}, features), not {kernel.shape}."
        )
    # Each output pixel sees only 2x2 input pixels, so the nine taps fold into a transposed
    # convolution of 4x4: less than half the products, on every platform.
    return conv_transpose(x, _fast_conv.fold_nearest(kernel), stride=2, padding=1)


def conv_downsample(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution of unchanged size, then the mean of 2x2 pixels: `upsample_conv`'s adjoint.

    x: (B, 2H, 2W, C); kernel: (3, 3, C, O). Returns (B, H, W, O), in the common dtype of both.
    Raises UserError if the channels do not fit, the kernel is not 3x3, or a side is odd.
    """
    if kernel.shape[:2] != (3, 3) or kernel.shape[2] != x.shape[-1]:
        raise UserError(
            f"conv_downsample: an input of shape {x.shape} needs a kernel of shape "
            f"(3, 3, {x.shape[-1]}, features), not {kernel.shape}."
        )
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise UserError(f"conv_downsample halves the sides of {x.shape}: they must be even.")
    # Four neighbours share most of their nine taps: one strided convolution of 4x4 is their sum.
    adjoint = kernel[::-1, ::-1].swapaxes(2, 3)
    return conv(x, _fast_conv.fold_nearest(adjoint) / 4, stride=2, padding=1)


def reflect_pad(x: Array, size: int) -> Array:
    """x (B, H, W, C) -> (B, H + 2 size, W + 2 size, C), mirrored at the outermost pixels.

    PyTorch's ReflectionPad2d, NumPy's "reflect". Raises UserError unless size < H and W.
    """
    if size >= min(x.shape[1:3]):
        raise UserError(
            f"A border of {size} mirrored pixels needs images larger than {size}, not {x.shape}."
        )
    return jnp.pad(x, ((0, 0), (size, size), (size, size), (0, 0)), "reflect")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def own_kernel(module: nn.Module, shape: tuple[int, ...]) -> Array:
    """The parameter `kernel` of a layer, as its `reparam` has it, if it has one."""
    kernel = module.param("kernel", module.kernel_init, shape, module.param_dtype)
    return kernel if module.reparam is None else module.reparam(module, kernel)


def _add_bias(module: nn.Module, y: Array) -> Array:
    if not module.use_bias:
        return y
    bias = module.param("bias", module.bias_init, (module.features,), module.param_dtype)
    return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)


class Conv(nn.Module):
    """`conv` with parameters `kernel` (kh, kw, C // groups, features) and `bias` (features,).

    x: (B, H, W, C) -> (B, h, w, features). Computes in `dtype` (None: the common dtype of input
    and parameters). Raises UserError if `groups` does not divide C and features.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    reparam: Reparametrization | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve x."""
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise UserError(
                f"Conv: groups={self.groups} must divide both the {x.shape[-1]} input channels "
                f"and the {self.features} features."
            )
        shape = (*_pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
        kernel = own_kernel(self, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return _add_bias(self, conv(x, kernel, self.stride, self.padding, self.groups))


class ConvTranspose(nn.Module):
    """`conv_transpose` with parameters `kernel` (kh, kw, features, C) and `bias` (features,).

    The kernel is that of the convolution features -> C whose adjoint this is (PyTorch's weight
    (C, features, kh, kw), transposed). x: (B, h, w, C) -> (B, H, W, features); the defaults double
    the size. Computes in `dtype` (None: the common dtype of input and parameters).
    """

    features: int
    kernel_size: int | tuple[int, int] = 4
    stride: int = 2
    padding: int = 1
    output_padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
    bias_init: Initializer = nn.initializers.zeros_init()
    reparam: Reparametrization | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve x."""
        shape = (*_pair(self.kernel_size), self.features, x.shape[-1])
        kernel = own_kernel(self, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = conv_transpose(x, kernel, self.stride, self.padding, self.output_padding)
        return _add_bias(self, y)


class UpsampleConv(nn.Module):
    """`upsample_conv` with parameters `kernel` (3, 3, C, features) and `bias` (features,).

    x: (B, H, W, C) -> (B, 2H, 2W, features). Computes in `dtype` (None: the common dtype of input
    and parameters).
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    reparam: Reparametrization | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Upsample and convolve x."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = own_kernel(self, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return _add_bias(self, upsample_conv(x, kernel))


class ConvDownsample(nn.Module):
    """`conv_downsample` with parameters `kernel` (3, 3, C, features) and `bias` (features,).

    x: (B, 2H, 2W, C) -> (B, H, W, features). Computes in `dtype` (None: the common dtype of input
    and parameters).
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    reparam: Reparametrization | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve and downsample x."""
        kernel = own_kernel(self, (3, 3, x.shape[-1], self.features))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return _add_bias(self, conv_downsample(x, kernel))


class Dense(nn.Module):
    """nn.Dense with the hook `reparam`: x (..., C) -> (..., features)."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    reparam: Reparametrization | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Multiply x by the kernel (C, features)."""
        kernel = own_kernel(self, (x.shape[-1], self.features))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = x @ kernel
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return y + bias.astype(y.dtype).reshape(*[1] * (y.ndim - 1), -1)
