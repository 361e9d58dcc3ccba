"""Two domains of images, a and b: what the methods that translate between them share."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from aigc_jax import models
from aigc_jax.errors import UserError
from aigc_jax.metrics import translation
from aigc_jax.types import Array, Batch

DIRECTIONS = {"a2b": ("a", "b"), "b2a": ("b", "a")}  # source and target of each


def generator(config: ConfigDict, axis_name: str | None) -> nn.Module:
    """The network that `config.generator` names. UserError: an unknown family or field."""
    return models.build(
        config.generator,
        "Generator",
        image_size=config.image_size,
        channels=config.channels,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def first(batch: Batch, method: str) -> tuple[Array, Array]:
    """The first example of `a` and of `b`, (1, H, W, C) each.

    Raises:
      UserError: the batch has no two domains, or images of different shape.
    """
    if not {"a", "b"} <= batch.keys():
        raise UserError(
            f"{method} translates between two domains, a and b, and the batches have "
            f"{', '.join(sorted(batch))}: set config.task to unpaired, pairs or colorize."
        )
    a, b = batch["a"][:1], batch["b"][:1]
    if a.shape != b.shape:
        raise UserError(f"The domains' images differ in shape: a {a.shape[1:]}, b {b.shape[1:]}.")
    return a, b


def measured(
    batch: Batch, target: str, made: Array, baselines: Mapping[str, Array]
) -> dict[str, tuple[Array, Array]]:
    """`translation.paired_sums` of baselines and translations; {} where the truth isn't known."""
    if target not in batch:
        return {}
    candidates = {f"{name}_": images for name, images in baselines.items()} | {"": made}
    return translation.paired_sums(batch[target], batch["valid"], candidates)
