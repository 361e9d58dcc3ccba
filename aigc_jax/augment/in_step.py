"""Augmentation on the device, as a part of the training step."""

from collections.abc import Callable
from typing import Any

import jax

from aigc_jax.augment.arrays import MAPS, augment
from aigc_jax.augment.chain import Chain
from aigc_jax.augment.mixing import mixed
from aigc_jax.errors import UserError
from aigc_jax.parallel import example_keys
from aigc_jax.types import Array, Batch

_IMAGES = ("image", "a", "b")
_SALT = 0x617567  # its keys are no others


def check(chain: Chain, batch: Batch, *, placed: bool = False, size: int = 0) -> None:
    """UserError where batches can't be augmented in the step.

    Args:
      batch: any of them.
      placed: whether it tells where things are in its images.
      size: examples of a device's part of it.
    """
    if not {*batch} & {*_IMAGES}:
        raise UserError(
            "config.augment: this task's batches hold no images as they were: use "
            "config.data.augment, which comes before the task."
        )
    if placed and chain.moves:
        raise UserError(
            "config.augment moves pixels, and the source tells where things are in its images, "
            "which that would make false: leave out what moves them."
        )
    if chain.mixes and size % 2:
        raise UserError(
            f"config.augment: {chain.mixes[0].name} mixes pairs, and a device's part of the batch "
            f"is {size} images: make it even."
        )


def augmented(train_step: Callable, chain: Chain, axis_name: str | None = None) -> Callable:
    """A step that sees its batch's images augmented, each by a key of its own.

    Args:
      train_step: (state, batch, rng) -> (state, metrics), a method's with its static half bound;
        the state counts its steps in `step`.
      axis_name: the pmapped axis of the batch, or None.

    Raises:
      UserError, of the step: the batch has neither `image` nor `a` and `b`; or it is to be mixed
        in pairs, and odd.
    """

    def step(state: Any, batch: Batch, rng: Array) -> tuple[Any, dict[str, Array]]:
        fields = {name: batch[name] for name in (*_IMAGES, *MAPS) if name in batch}
        check(chain, batch, size=len(next(iter(batch.values()))))
        own = jax.random.fold_in(jax.random.fold_in(rng, _SALT), state.step)
        keys = example_keys(own, len(next(iter(fields.values()))), axis_name)
        batch = {**batch, **augment(chain, fields, keys)}
        if chain.mixes:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, len(chain.steps))
            batch |= mixed(chain.mixes, batch, keys)
        return train_step(state, batch, rng)

    return step
