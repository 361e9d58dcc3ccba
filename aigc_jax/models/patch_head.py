"""The projection of CUT (Park et al. 2020, appendix C.1): patches of features to unit vectors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.init import scaled_normal
from aigc_jax.types import Array


class PatchHead(nn.Module):
    """An MLP of two layers for each of several maps of features.

    Attributes:
      features: of the vectors.
      dtype: of the computation.
    """

    features: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], places: Sequence[Array]) -> list[Array]:
        """Maps (B, h, w, c) and places (P,) int32 in [0, h w) -> vectors (B, P, features) each."""
        init = scaled_normal(0.0)
        found = []
        for i, (x, at) in enumerate(zip(maps, places, strict=True)):
            x = x.reshape(len(x), -1, x.shape[-1])[:, at]
            for k in range(2):
                x = nn.relu(x) if k else x
                x = nn.Dense(
                    self.features, kernel_init=init, dtype=self.dtype, name=f"mlp_{i}_{k}"
                )(x)
            x = x.astype(jnp.float32)
            # As published: a norm of 0, where all is dead, divides by its offset.
            found.append(x / (jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-14)))
        return found


def draw_places(key: Array, maps: Sequence[Array], most: int) -> list[Array]:
    """For each map (B, h, w, c), `most` of its places or all, drawn without replacement."""
    keys = jax.random.split(key, len(maps))
    sizes = [x.shape[1] * x.shape[2] for x in maps]
    return [jax.random.permutation(k, n)[: min(most, n)] for k, n in zip(keys, sizes, strict=True)]
