"""Classical image processing as functions of one image, jit- and vmap-able."""

from aigc_jax.filters.denoisers import DENOISERS
from aigc_jax.filters.nl_means import nl_means
from aigc_jax.filters.smoothing import bilateral, gaussian, median
from aigc_jax.filters.total_variation import total_variation

__all__ = ["DENOISERS", "bilateral", "gaussian", "median", "nl_means", "total_variation"]
