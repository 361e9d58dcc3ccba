"""A small convolutional classifier: the judge of conditional samples, and a feature network."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.conv import Conv
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.types import Array


class Classifier(nn.Module):
    """Images -> class logits and features.

    Stages of two 3x3 convolutions, the second of stride 2, until the image is 4x4; then the mean
    over pixels is the feature vector, and one linear layer reads it.

    Attributes:
      num_classes: of the data.
      width: channels of the first stage; each stage doubles them, up to 8 times.
      dtype, axis_name: as everywhere.
    """

    num_classes: int = 10
    width: int = 32
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """x (B, S, S, C) in [-1, 1] -> (logits (B, K), features (B, D)), float32."""
        conv = partial(Conv, kernel_size=3, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        x = x.astype(self.dtype)
        width = self.width
        while x.shape[1] > 4:
            for stride in (1, 2):
                x = nn.relu(norm()(conv(width, stride=stride)(x), train=train))
            width = min(2 * width, 8 * self.width)
        features = jnp.mean(x.astype(jnp.float32), (1, 2))
        return nn.Dense(self.num_classes)(features), features
