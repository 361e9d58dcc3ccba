"""A U-Net that restores images, without norms.

With plain convolutions it is the residual U-Net of DRUNet (Zhang et al. 2021, section 3.1) for any
degradation; 3 levels, 4 blocks, width 64 and no biases are its published size. For images with
holes its convolutions may be partial (Liu et al. 2018) or gated (Yu et al. 2019), some of them
dilated at the bottom, so that a pixel deep in a hole sees known ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.conv import Conv
from aigc_jax.layers.masked_conv import GatedConv, PartialConv
from aigc_jax.layers.shuffle import dilated, shuffle, unshuffle
from aigc_jax.types import Array

Initializer = jax.nn.initializers.Initializer
Masked = tuple[Array, Array | None]  # features, and the mask of partial convolutions

_CONVS = ("plain", "partial", "gated")
_he = nn.initializers.he_normal()
_zeros = nn.initializers.zeros_init()


class Restorer(nn.Module):
    """Degraded images, or images with holes -> restored ones of the same size.

    Attributes:
      channels: of the images.
      width: channels at full size; each level doubles them, up to 8 times.
      levels: halvings.
      blocks: residual blocks at each size on the way down, at the bottom and on the way up;
        at least 1 with plain convolutions, which are linear outside blocks.
      conv: "plain", "partial" or "gated"; UserError otherwise.
      dilations: of further blocks at the bottom, for example (2, 4, 8).
      shuffle: side of the blocks of pixels that the network sees as channels; 2 makes it four
        times cheaper. UserError unless it is 1 with partial convolutions.
      residual: whether the network's result is added to its input.
      use_bias: of the convolutions. A plain network without biases adds nothing anywhere, and holds
        at noise levels it never saw (Mohan et al. 2020).
      dtype: of the computation.
    """

    channels: int = 3
    width: int = 64
    levels: int = 3
    blocks: int = 2
    conv: str = "plain"
    dilations: tuple[int, ...] = ()
    shuffle: int = 1
    residual: bool = True
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """x (B, H, W, channels) in [-1, 1], 0 where unknown -> the same shape, float32, unbounded.

        `mask` (B, H, W, 1): 1 where known; None: all is. Plain and gated convolutions see it as a
        further channel: initialise them as they are used. `train` changes nothing. UserError for
        sides that aren't multiples of `multiple(self)`.
        """
        self._check(x)
        y = self._layer("first", self.width, activated=self.conv != "plain")(self._seen(x, mask))
        skips = []
        for i in range(self.levels):
            y = self._blocks(y, f"down_{i}")
            skips.append(y)
            y = self._down(y, self.width * min(2 << i, 8), f"down_{i}")
        y = self._blocks(y, "bottom")
        for i, dilation in enumerate(self.dilations):
            y = self._block(y, f"dilated_{i}", dilation)
        for i in reversed(range(self.levels)):
            y = self._blocks(self._up(y, skips[i], f"up_{i}"), f"up_{i}")
        y = self._pointwise(y[0], self.channels * self.shuffle**2, "last", 3, _zeros)
        y = shuffle(y, self.shuffle).astype(jnp.float32)
        return x.astype(jnp.float32) + y if self.residual else y

    def _seen(self, x: Array, mask: Array | None) -> Masked:
        """What goes in."""
        x = x.astype(self.dtype)
        if self.conv == "partial":
            return x, jnp.ones_like(x[..., :1]) if mask is None else mask
        x = x if mask is None else jnp.concatenate([x, mask.astype(self.dtype)], -1)
        return unshuffle(x, self.shuffle), None

    def _blocks(self, y: Masked, name: str) -> Masked:
        for i in range(self.blocks):
            y = self._block(y, f"{name}_block_{i}")
        return y

    def _block(self, y: Masked, name: str, dilation: int = 1) -> Masked:
        """Begins as the identity."""
        features = y[0].shape[-1]
        inside = self._layer(f"{name}_a", features, dilation=dilation)(y)
        change, mask = self._layer(f"{name}_b", features, activated=False, init=_zeros)(inside)
        return y[0] + change, mask

    def _down(self, y: Masked, features: int, name: str) -> Masked:
        if self.conv == "plain":  # a 2x2 convolution of stride 2
            return self._pointwise(unshuffle(y[0], 2), features, name), None
        return self._layer(name, features, stride=2)(y)

    def _up(self, y: Masked, skip: Masked, name: str) -> Masked:
        features = skip[0].shape[-1]
        if self.conv == "plain":  # the adjoint of such a one
            return skip[0] + shuffle(self._pointwise(y[0], 4 * features, name), 2), None
        return self._layer(name, features)(_joined(y, skip))

    def _layer(self, name: str, features: int, **fields: Any) -> "_Layer":
        common = dict(kind=self.conv, use_bias=self.use_bias, dtype=self.dtype)
        return _Layer(features, **common, **fields, name=name)

    def _pointwise(
        self, x: Array, features: int, name: str, size: int = 1, init: Initializer = _he
    ) -> Array:
        fields = dict(use_bias=self.use_bias, kernel_init=init, dtype=self.dtype)
        return Conv(features, size, **fields, name=name)(x)

    def _check(self, x: Array) -> None:
        if self.conv not in _CONVS:
            name = self.conv
            raise UserError(f"unet has no conv {name!r}.{did_you_mean(name, _CONVS)}")
        if self.blocks < (self.conv == "plain"):
            raise UserError(
                f"unet's blocks is {self.blocks}: take at least 1, since plain convolutions are "
                "linear outside blocks."
            )
        if self.shuffle != 1 and (self.shuffle < 1 or self.conv == "partial"):
            raise UserError(
                f"unet's shuffle is {self.shuffle}: take 1, or 2 where convolutions aren't partial."
            )
        height, width = x.shape[1:3]
        if height % multiple(self) or width % multiple(self):
            raise UserError(
                f"unet of {self.levels} levels and shuffle {self.shuffle} takes sides that are "
                f"multiples of {multiple(self)}, not {height}x{width}."
            )


class _Layer(nn.Module):
    """A 3x3 convolution of a kind, and its activation."""

    features: int
    kind: str
    stride: int = 1
    dilation: int = 1
    activated: bool = True
    use_bias: bool = True
    init: Initializer = _he
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, y: Masked) -> Masked:
        conv = {"plain": Conv, "partial": PartialConv, "gated": GatedConv}[self.kind]
        gate = {"activation": nn.elu if self.activated else None} if self.kind == "gated" else {}
        conv = conv(
            self.features, 3, self.stride, 1, use_bias=self.use_bias, kernel_init=self.init,
            dtype=self.dtype, name="conv", **gate,
        )  # fmt: skip
        if self.kind == "partial":
            x, mask = dilated(conv, self.dilation, *y)
        else:
            x, mask = dilated(conv, self.dilation, y[0]), None
        return nn.relu(x) if self.activated and not gate else x, mask


def multiple(module: Restorer) -> int:
    """Sizes that the network takes are multiples of this."""
    return module.shuffle << module.levels


def _joined(y: Masked, skip: Masked) -> Masked:
    """The smaller images doubled, beside the others; channels keep the masks they came with."""
    x = jnp.concatenate([_twice(y[0]), skip[0]], -1)
    if y[1] is None:
        return x, None
    masks = (_twice(y[1]), y[0].shape), (skip[1], skip[0].shape)
    spread = [jnp.broadcast_to(m, (*m.shape[:3], shape[-1])) for m, shape in masks]
    return x, jnp.concatenate(spread, -1)


def _twice(x: Array) -> Array:
    """Nearest-neighbour upsampling: (B, H, W, C) -> (B, 2H, 2W, C)."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
