"""Contrastive losses."""

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
