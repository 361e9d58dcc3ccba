"""A detector of objects by their centres (Zhou et al. 2019, "Objects as Points")."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Conv, upsample_conv
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.types import Array


class Maps(NamedTuple):
    """What a detector gives for images, float32; cell (i, j) of G x G is 1/G of the side wide.

    Attributes:
      heat: (B, G, G) log-odds that an object's centre lies in the cell.
      offset: (B, G, G, 2) x and y of that centre from the cell's own, in cells.
      classes: (B, G, G, sum(classes)) logits of its attributes, one after the other.
      background: (B, backgrounds) logits.
      features: (B, D) of the whole image.
    """

    heat: Array
    offset: Array
    classes: Array
    background: Array
    features: Array


class Detector(nn.Module):
    """Images -> maps of centres with attributes.

    Stages down to a quarter of the grid, whose mean is the feature vector, and up to it again,
    where the stage of the same size is added (Lin et al. 2017, feature pyramids).

    Attributes:
      classes: of each attribute.
      backgrounds: classes of the background.
      width: channels at the grid; the stages below have 2 and 4 times as many.
      grid: cells along a side; image sizes are grid * 2^k.
      dtype, axis_name: as everywhere.
    """

    classes: tuple[int, ...] = (2,)
    backgrounds: int = 1
    width: int = 32
    grid: int = 16
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Maps:
        """x (B, S, S, C) in [-1, 1]. UserError where S is no grid * 2^k."""
        _check_size(x.shape[1], self.grid)
        conv = partial(Conv, kernel_size=3, use_bias=False, dtype=self.dtype)

        def stage(x: Array, width: int, stride: int = 1) -> Array:
            y = conv(width, stride=stride)(x)
            norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype)
            return nn.relu(norm(y, train=train))

        width = self.width
        x = stage(x.astype(self.dtype), width // 2)
        while x.shape[1] > self.grid:
            x = stage(x, width, stride=2)
        fine = stage(x, width)
        middle = stage(stage(fine, 2 * width, stride=2), 2 * width)
        coarse = stage(stage(middle, 4 * width, stride=2), 4 * width)
        features = coarse.astype(jnp.float32).mean((1, 2))
        middle = nn.relu(middle + _Up(2 * width, dtype=self.dtype)(coarse))
        y = stage(nn.relu(fine + _Up(width, dtype=self.dtype)(middle)), 2 * width)
        maps = nn.Dense(3 + sum(self.classes), name="heads")(y.astype(jnp.float32))
        background = nn.Dense(self.backgrounds, name="background")(features)
        # The share of cells that hold a centre is small: start from it (Lin et al. 2017b).
        return Maps(maps[..., 0] - 4, maps[..., 1:3], maps[..., 3:], background, features)


class _Up(nn.Module):
    """Twice the size, by the nearest pixel and a 3x3 convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (B, H, W, C) -> (B, 2H, 2W, features)."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return upsample_conv(x, kernel.astype(self.dtype))


class Objects(NamedTuple):
    """The M likeliest objects of images, float32.

    Attributes:
      present: (B, M) log-odds that there is one, the highest first.
      centre: (B, M, 2) x and y as shares of the side.
      classes: (B, M, sum(classes)) logits of its attributes, one after the other.
    """

    present: Array
    centre: Array
    classes: Array


def peaks(maps: Maps, count: int) -> Objects:
    """The `count` highest cells of the heat that none of their eight neighbours exceeds."""
    batch, grid, _ = maps.heat.shape
    around = nn.max_pool(maps.heat[..., None], (3, 3), padding="SAME")[..., 0]
    heat = jnp.where(maps.heat == around, maps.heat, -30.0).reshape(batch, -1)
    present, cells = jax.lax.top_k(heat, count)
    chosen = jax.nn.one_hot(cells, grid * grid)  # (B, M, G * G): no gather
    at = lambda x: jnp.einsum("bmc,bck->bmk", chosen, x.reshape(batch, grid * grid, -1))  # noqa: E731
    corner = jnp.stack([cells % grid, cells // grid], -1)
    return Objects(present, (corner + 0.5 + at(maps.offset)) / grid, at(maps.classes))


def _check_size(size: int, grid: int) -> None:
    scale = size // grid
    if size < grid or size % grid or scale & (scale - 1):
        sizes = ", ".join(str(grid << k) for k in range(4))
        raise UserError(
            f"The detector reads images of {sizes}, ... pixels, not of {size}: set "
            "config.image_size, or config.model.grid."
        )
