"""The residual generator of image translation (Johnson et al. 2016; Zhu et al. 2017, section 7.1).

A 7x7 convolution, two that halve the size, residual blocks, two that double it, a 7x7 convolution
and tanh; instance norm and ReLU after all but the last; borders are mirrored. With `resample`
"transpose" it is CycleGAN's, 11,378,179 parameters with 9 blocks and 7,837,699 with 6; with "blur"
that of CUT (Park et al. 2020), whose changes of size are free of aliasing (Zhang 2019).
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.conv import Conv, ConvTranspose, UpsampleConv, reflect_pad
from aigc_jax.layers.init import scaled_normal
from aigc_jax.layers.norm import InstanceNorm
from aigc_jax.layers.resample import blur_down, blur_up
from aigc_jax.types import Array, PyTree

_RESAMPLES = ("transpose", "nearest", "blur")
_TAPS = (0, 4)  # the blocks whose results `encode` returns


class Generator(nn.Module):
    """Images -> images of the same size.

    Attributes:
      channels: of the result.
      width: channels of the first layer; 2 and 4 times as many follow.
      blocks: residual blocks: 9 for 256 pixels, 6 for 128 in the papers.
      resample: how the size changes: "transpose", strided and transposed convolutions (CycleGAN);
        "nearest", the same but nearest pixels and a convolution on the way up, which leaves no
        checkerboard (Odena et al. 2016); "blur", binomial filters (CUT). UserError otherwise.
      init_gain: standard deviation of the first weights; smaller ones begin closer to grey, and
        invert colours less often. 0: Glorot's normal ones times 0.02 (CUT).
      dtype: of the computation.
    """

    channels: int = 3
    width: int = 64
    blocks: int = 9
    resample: str = "transpose"
    init_gain: float = 0.02
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """The layers."""
        if self.resample not in _RESAMPLES:
            name = self.resample
            raise UserError(
                f"resnet_translator has no resample {name!r}.{did_you_mean(name, _RESAMPLES)}"
            )
        if self.blocks < 1:
            raise UserError(f"resnet_translator's blocks is {self.blocks}: take at least 1.")
        init = scaled_normal(self.init_gain)
        conv = partial(Conv, kernel_init=init, dtype=self.dtype)
        stride = 1 if self.resample == "blur" else 2
        self.first = conv(self.width, 7, padding=0)
        self.downs = [conv(k * self.width, stride=stride, padding=1) for k in (2, 4)]
        wide = 4 * self.width
        self.residual = [conv(wide, padding=0) for _ in range(2 * self.blocks)]
        up = {
            "transpose": partial(ConvTranspose, kernel_size=3, output_padding=1),
            "nearest": UpsampleConv,
            "blur": Conv,
        }[self.resample]
        self.ups = [up(k * self.width, kernel_init=init, dtype=self.dtype) for k in (2, 1)]
        self.last = conv(self.channels, 7, padding=0)
        self.norm = InstanceNorm(use_scale=False, use_bias=False, dtype=self.dtype)

    def __call__(self, x: Array, *, train: bool = False, keys: Array | None = None) -> Array:
        """x (B, H, W, C) in [-1, 1], H and W multiples of 4 -> (B, H, W, channels), float32.

        UserError for other sides. `train` and `keys` change nothing: there are no running
        statistics and no dropout.
        """
        if x.shape[1] % 4 or x.shape[2] % 4:
            height, width = x.shape[1:3]
            raise UserError(
                f"resnet_translator takes sides that are multiples of 4, not {height}x{width}."
            )
        return self._decode(self._encode(x, self.blocks)[-1])

    def with_features(self, x: Array) -> tuple[Array, list[Array]]:
        """What `__call__` and `encode` return, in one pass."""
        found = self._encode(x, self.blocks)
        return self._decode(found[-1]), self._looked_at(found)

    def encode(self, x: Array) -> list[Array]:
        """What a contrastive loss looks at (Park et al. 2020, appendix C.1): (B, h, w, c) each.

        The padded image, both halving convolutions before their norm, residual blocks 1 and 5; of
        a network with fewer blocks the last.
        """
        return self._looked_at(self._encode(x, min(max(_TAPS) + 1, self.blocks)))

    def _looked_at(self, found: list[Array]) -> list[Array]:
        return [*found[:3], *(found[3 + min(tap, self.blocks - 1)] for tap in _TAPS)]

    def _decode(self, x: Array) -> Array:
        for up in self.ups:
            x = up(blur_up(x) if self.resample == "blur" else x)
            x = nn.relu(self.norm(x))
        return jnp.tanh(self.last(reflect_pad(x, 3)).astype(jnp.float32))

    def _encode(self, x: Array, blocks: int) -> list[Array]:
        """The padded image, the halving convolutions, and `blocks` residual blocks."""
        x = reflect_pad(x.astype(self.dtype), 3)
        found = [x]
        x = nn.relu(self.norm(self.first(x)))
        for down in self.downs:
            found.append(down(x))
            x = nn.relu(self.norm(found[-1]))
            x = blur_down(x) if self.resample == "blur" else x
        return [*found, *self._transform(x, blocks)]

    def _transform(self, x: Array, blocks: int) -> list[Array]:
        """What each of the first `blocks` residual blocks returns."""
        if self.is_initializing():
            for layer in self.residual:
                layer(reflect_pad(x, 1))
        weights = [layer.variables["params"] for layer in self.residual[: 2 * blocks]]
        weights = [jax.tree.map(lambda *p: jnp.stack(p), *weights[i::2]) for i in range(2)]
        conv = Conv(4 * self.width, padding=0, dtype=self.dtype, parent=None)
        norm = self.norm.clone(parent=None)

        def half(x: Array, weights: PyTree) -> Array:
            return norm.apply({}, conv.apply({"params": weights}, reflect_pad(x, 1)))

        def block(x: Array, weights: list[PyTree]) -> tuple[Array, Array]:
            x = x + half(nn.relu(half(x, weights[0])), weights[1])
            return x, x

        # A loop, not the blocks one after the other: they would take minutes to compile.
        x, each = lax.scan(block, x, weights)
        return [*each[:-1], x]


def multiple(module: Generator) -> int:
    """Sizes that the network takes are multiples of this."""
    return 4
