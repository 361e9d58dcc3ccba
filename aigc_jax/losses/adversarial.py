"""Adversarial losses: logits -> scalars. Each is a pair, picked by its name in `config.loss`."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.nn import relu, softplus

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.types import Array


class AdversarialLoss(NamedTuple):
    """Two functions of logits of any shape.

    Attributes:
      discriminator: (real logits, fake logits) -> the scalar that D minimises.
      generator: fake logits -> the scalar that G minimises; of a relativistic loss (fake logits,
        real logits).
      relativistic: whether G's loss takes the real logits too.
    """

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[..., Array]
    relativistic: bool = False


# Goodfellow et al. 2014, eq. 1 and section 3: -log D(x) - log(1 - D(G(z))); G: -log D(G(z)).
non_saturating = AdversarialLoss(
    discriminator=lambda real, fake: jnp.mean(softplus(-real)) + jnp.mean(softplus(fake)),
    generator=lambda fake: jnp.mean(softplus(-fake)),
)

# Mao et al. 2017, eq. 9 (a = 0, b = c = 1), each with the paper's factor 1/2.
least_squares = AdversarialLoss(
    discriminator=lambda real, fake: jnp.mean((real - 1) ** 2) / 2 + jnp.mean(fake**2) / 2,
    generator=lambda fake: jnp.mean((fake - 1) ** 2) / 2,
)

# Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17.
hinge = AdversarialLoss(
    discriminator=lambda real, fake: jnp.mean(relu(1 - real)) + jnp.mean(relu(1 + fake)),
    generator=lambda fake: -jnp.mean(fake),
)

# Arjovsky et al. 2017, eq. 2: needs a Lipschitz critic, so use it with a gradient penalty.
wasserstein = AdversarialLoss(
    discriminator=lambda real, fake: jnp.mean(fake) - jnp.mean(real),
    generator=lambda fake: -jnp.mean(fake),
)

# Jolicoeur-Martineau 2019, section 4, and Huang et al. 2024, section 2.1 (RpGAN): each real image
# is to be above the generated one that it is paired with, by index, and G wants the opposite.
relativistic = AdversarialLoss(
    discriminator=lambda real, fake: jnp.mean(softplus(fake - real)),
    generator=lambda fake, real: jnp.mean(softplus(real - fake)),
    relativistic=True,
)


def get(name: str) -> AdversarialLoss:
    """The loss of that name. Raises UserError for an unknown one."""
    known = {key: value for key, value in globals().items() if isinstance(value, AdversarialLoss)}
    if name not in known:
        raise UserError(f"Unknown loss {name!r}.{did_you_mean(name, known)}")
    return known[name]
