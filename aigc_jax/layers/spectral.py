"""Spectral normalisation: kernels divided by their largest singular value (Miyato et al. 2018).

Give a layer's `reparam` the function `spectral(train)`. Its vector of the power iteration is the
layer's variable `u` in the collection `spectral`, which belongs into the state beside the
parameters: `apply(..., mutable=["spectral"])` brings it on.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax.layers.conv import Reparametrization
from aigc_jax.types import Array

_AT_FIRST = 16  # iterations from random vectors; with fewer a first call is far off


def spectral(train: bool, iterations: int = 1) -> Reparametrization:
    """The hook for a layer's `reparam`, in training or not."""
    return partial(normalized, train=train, iterations=iterations)


def normalized(module: nn.Module, kernel: Array, *, train: bool, iterations: int = 1) -> Array:
    """The kernel (..., O) over the largest singular value of the matrix (-1, O) that it is.

    Each call takes `iterations` steps of the power iteration from `u` (O,); those of a training
    call are kept, where the collection may change. The gradient goes through the singular value,
    and not through the vectors (Miyato et al. 2018, algorithm 1 and appendix A).
    """
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    fixed = lax.stop_gradient(matrix)

    def begin() -> Array:
        u = jax.random.normal(module.make_rng("params"), matrix.shape[1:])
        # A loop: unrolled, the first state of a whole network would compile twice as long.
        return lax.fori_loop(0, _AT_FIRST, lambda _, u: _iterate(fixed, u, 1)[0], u)

    kept = module.variable("spectral", "u", begin)
    u, v = _iterate(fixed, kept.value, iterations)
    changes = module.is_mutable_collection("spectral") and not module.is_initializing()
    if train and changes:
        kept.value = u
    sigma = (v @ matrix) @ u
    return kernel / jnp.maximum(sigma, 1e-12).astype(kernel.dtype)


def _iterate(matrix: Array, u: Array, iterations: int) -> tuple[Array, Array]:
    for _ in range(iterations):
        v = _unit(matrix @ u)
        u = _unit(v @ matrix)
    return u, v


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x)), 1e-12)
