"""PatchGAN (Isola et al. 2017, section 3.2.2): a discriminator that judges every patch.

4x4 convolutions: one of stride 2 without norm, `num_layers` - 1 more of stride 2, two of stride 1.
A logit of 3 layers sees 70x70 pixels, of 2 layers 34x34, of 1 layer 16x16. Images that condition
are concatenated to the channels by the caller.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.condition import concat_label
from aigc_jax.layers.conv import Conv
from aigc_jax.layers.init import around_one, scaled_normal
from aigc_jax.layers.norm import BatchNorm, InstanceNorm
from aigc_jax.layers.resample import blur_down
from aigc_jax.types import Array

_NORMS = ("batch", "instance", "none")


class Discriminator(nn.Module):
    """Images -> a map of logits.

    Attributes:
      width: channels of the first layer; each layer doubles them, up to 8 times.
      num_layers: of stride 2, at least 1.
      norm: "batch" (pix2pix, VQGAN; its convolutions have no bias), "instance" (CycleGAN) or
        "none". UserError otherwise.
      antialias: halves by a binomial filter after each layer in the place of its stride (CUT;
        Zhang 2019). The logits are as many.
      num_classes: 0 for unconditional; else labels join the image as constant planes.
      init_gain: standard deviation of the first weights; 0: Glorot's normal ones times 0.02 (CUT).
      dtype: of the computation.
      axis_name: the pmapped axis over which batch norm takes its statistics.
    """

    width: int = 64
    num_layers: int = 3
    norm: str = "batch"
    antialias: bool = False
    num_classes: int = 0
    init_gain: float = 0.02
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool, groups: int = 1
    ) -> Array:
        """x (B, H, W, C) in [-1, 1], label (B,) int32 -> logits (B, h, w) float32.

        h = H / 2**num_layers - 2: 30 for 256 pixels and 3 layers, 6 for 32 pixels and 2.

        The batch interleaves `groups` sub-batches (example i is of sub-batch i % groups), and
        batch norm takes the statistics of each: real and fake share one pass, not their moments.
        """
        self._check(x)
        conv = partial(
            Conv,
            kernel_size=4,
            padding=1,
            kernel_init=scaled_normal(self.init_gain),
            dtype=self.dtype,
        )
        x = concat_label(x.astype(self.dtype), label, self.num_classes)
        stride, halve = (1, blur_down) if self.antialias else (2, lambda x: x)
        x = halve(nn.leaky_relu(conv(self.width, stride=stride)(x), 0.2))
        for i in range(1, self.num_layers + 1):
            if i == self.num_layers:
                stride, halve = 1, lambda x: x
            width = self.width * min(1 << i, 8)
            x = conv(width, stride=stride, use_bias=self.norm != "batch")(x)
            x = halve(nn.leaky_relu(self._normalise(x, train, groups), 0.2))
        return conv(1)(x).astype(jnp.float32)[..., 0]

    def _normalise(self, x: Array, train: bool, groups: int) -> Array:
        if self.norm == "instance":
            return InstanceNorm(use_scale=False, use_bias=False, dtype=self.dtype)(x)
        if self.norm == "batch":
            norm = BatchNorm(axis_name=self.axis_name, scale_init=around_one, dtype=self.dtype)
            return norm(x, train=train, groups=groups)
        return x

    def _check(self, x: Array) -> None:
        if self.norm not in _NORMS:
            raise UserError(f"patchgan has no norm {self.norm!r}.{did_you_mean(self.norm, _NORMS)}")
        if self.num_layers < 1:
            raise UserError(f"patchgan's num_layers is {self.num_layers}: take at least 1.")
        side, needed = min(x.shape[1:3]), 3 << self.num_layers
        if side < needed:
            raise UserError(
                f"patchgan of {self.num_layers} layers needs images of {needed} pixels, not "
                f"{side}: take fewer num_layers."
            )
