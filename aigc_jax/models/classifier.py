"""A small convolutional classifier: the judge of conditional samples, and a feature network."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Conv
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.types import Array, PyTree


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
        """x (B, S, S, C) in [-1, 1] -> (logits (B, K), features (B, D)), float32.

        Sows the last activation of every resolution as `stages`: see the function of that name.
        """
        conv = partial(Conv, kernel_size=3, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, dtype=self.dtype)
        x = x.astype(self.dtype)
        width = self.width
        while x.shape[1] > 4:
            x = nn.relu(norm()(conv(width)(x), train=train))
            self.sow("intermediates", "stages", x)
            x = nn.relu(norm()(conv(width, stride=2)(x), train=train))
            width = min(2 * width, 8 * self.width)
        self.sow("intermediates", "stages", x)
        features = jnp.mean(x.astype(jnp.float32), (1, 2))
        return nn.Dense(self.num_classes)(features), features


def stages(model: nn.Module, variables: PyTree, images: Array) -> tuple[Array, ...]:
    """The last activation of every resolution, as perceptual distances compare them.

    Args:
      model: a `Classifier`, or any module(images, train=) that sows `stages`.
      variables: of the model.
      images: (B, S, S, C) in [-1, 1].

    Returns:
      maps (B, s, s, c) for s = S, S/2, ..., 4.

    Raises:
      UserError: the model sows none.
    """
    _, sown = model.apply(variables, images, train=False, mutable=["intermediates"])
    if "stages" not in sown.get("intermediates", {}):
        raise UserError(
            f"{type(model).__name__} shows no stages: let its __call__ "
            "self.sow('intermediates', 'stages', x) after each."
        )
    return sown["intermediates"]["stages"]
