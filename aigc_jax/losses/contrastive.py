"""Contrastive losses."""

import jax
import jax.numpy as jnp
import optax

from aigc_jax.types import Array


def patch_nce(queries: Array, keys: Array, temperature: float = 0.07) -> Array:
    """PatchNCE (Park et al. 2020, eq. 3): the cross-entropy of finding each patch's own place.

    Args:
      queries: (B, P, D), unit vectors of patches of a translation.
      keys: (B, P, D), those of the same places of its source; the P - 1 other places of the same
        image are the negatives. The caller keeps gradients from them.

    Returns:
      () the mean over images and places.
    """
    logits = jnp.einsum("bpd,bqd->bpq", queries, keys) / temperature
    place = jnp.broadcast_to(jnp.arange(logits.shape[1])[None], logits.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(logits, place).mean()


def matching(
    images: Array, texts: Array, others: Array, weights: Array, temperature: float = 0.1
) -> Array:
    """The cross-entropy of finding each image's text (van den Oord et al. 2018, eq. 4).

    Between images and their captions it is the image-text term of XMC-GAN (Zhang et al. 2021,
    section 4.2).

    Args:
      images, texts: (B, D) unit vectors that belong together.
      others: (N, D), the texts among which each is to be found, its own included.
      weights: (B,) of the examples, of mean 1.

    Returns:
      () their mean.
    """
    logits = images @ others.T / temperature
    own = jnp.sum(images * texts, -1) / temperature
    return jnp.mean(weights * (jax.nn.logsumexp(logits, axis=-1) - own))
