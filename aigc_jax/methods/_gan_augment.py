"""What a GAN's discriminator sees is augmented; a part of `methods.gan`, whose `GAN` it takes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import optim
from aigc_jax.augment import ada, diffaugment
from aigc_jax.errors import UserError
from aigc_jax.parallel import axis_size
from aigc_jax.types import Array, Metrics


class Ada(NamedTuple):
    """How the probability of adaptive augmentation follows D (Karras et al. 2020a, section 3).

    Attributes:
      target: of r_t, the mean sign of D's logits of real images.
      kimg: thousands of real images in which the probability can go from 0 to 1.
      every: steps between its changes; 0: it doesn't follow D, but rises to `p` along half a
        cosine of `kimg`, and stays (Huang et al. 2024).
      p: where it ends then.
    """

    target: float = 0.6
    kimg: float = 500.0
    every: int = 4
    p: float = 0.0


ADA = Ada()


def parse(text: str) -> tuple[str, ...]:
    """("ada",), or the policies of DiffAugment; UserError for what is neither."""
    return ("ada",) if text.strip() == "ada" else diffaugment.parse(text)


def check(settings: Ada) -> None:
    """UserError for settings that mean nothing."""
    if not -1 <= settings.target <= 1:
        raise UserError(f"config.ada.target is {settings.target}: it must be from -1 to 1.")
    if settings.kimg <= 0 or settings.every < 0:
        raise UserError("config.ada.kimg must be above 0, and config.ada.every at least 0.")
    if not 0 <= settings.p <= 1:
        raise UserError(f"config.ada.p is {settings.p}: it must be from 0 to 1.")


def begin(gan: Any) -> dict[str, Array]:
    """What the state carries of it."""
    names = ("ada_p", "ada_sign") if gan.augment == ("ada",) else ()
    return {name: jnp.zeros((), jnp.float32) for name in names}


def seen(gan: Any, extras: dict[str, Array], images: Array, keys: Array, use: int) -> Array:
    """Images as D sees them, by keys (B,); `use` tells the calls of a step apart."""
    if not gan.augment:
        return images
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 100 + use)
    if gan.augment == ("ada",):
        return ada.bgc(images, keys, extras["ada_p"])
    return diffaugment.diffaugment(gan.augment, images, keys)


def followed(
    gan: Any, extras: dict[str, Array], step: Array, metrics: Metrics, examples: int
) -> dict[str, Array]:
    """The extras after a step, in which D saw so many real `examples` on this device."""
    if "ada_p" not in extras:
        return extras
    if not gan.ada.every:
        shown = (step.astype(jnp.float32) + 1) * (examples * axis_size(gan.axis_name))
        p = optim.annealed(shown, 0.0, gan.ada.p, max(1, round(1000 * gan.ada.kimg)))
        return extras | {"ada_p": p}
    total = extras["ada_sign"] + metrics["d_sign"]
    seen_images = gan.ada.every * examples * axis_size(gan.axis_name)
    p = ada.adapted(
        extras["ada_p"], total / gan.ada.every, seen_images, gan.ada.target, gan.ada.kimg
    )
    now = (step + 1) % gan.ada.every == 0
    return extras | {
        "ada_p": jnp.where(now, p, extras["ada_p"]),
        "ada_sign": jnp.where(now, 0.0, total),
    }
