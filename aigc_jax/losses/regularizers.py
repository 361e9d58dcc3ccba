"""What keeps a GAN's networks smooth, beside the gradient penalties: functions of arrays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import relu

from aigc_jax.types import Array, PyTree


def lecam(real: Array, fake: Array, mean_real: Array, mean_fake: Array) -> Array:
    """Logits are kept from where the other side's have been (Tseng et al. 2021, eq. 6).

    With the rectifiers of the authors' code: real logits pay above the mean of the fake ones, and
    fake logits below the mean of the real ones.

    Args:
      real, fake: logits of any shape.
      mean_real, mean_fake: () moving averages of them.
    """
    return jnp.mean(relu(real - mean_fake) ** 2) + jnp.mean(relu(mean_real - fake) ** 2)


def path_lengths(synthesis: Callable[[Array], Array], ws: Array, noise: Array) -> Array:
    """How far images move with their styles: |J^T y| for random y (Karras et al. 2020b, eq. 4).

    Args:
      synthesis: ws -> images.
      ws: (B, L, W), styles of the layers.
      noise: (B, H, W, C) ~ N(0, 1).

    Returns:
      (B,), lengths over the W numbers of a style, in the root mean square over layers.
    """
    noise = noise / (noise.shape[1] * noise.shape[2]) ** 0.5
    slopes = jax.grad(lambda ws: jnp.sum(synthesis(ws) * noise))(ws)
    return jnp.sqrt(jnp.sum(slopes**2, -1).mean(-1) + 1e-12)


def orthogonal(params: PyTree) -> Array:
    """The sum over kernels W (-1, O) of |W^T W|^2 off the diagonal (Brock et al. 2019, eq. 3).

    Kernels are the leaves of that name, but those of embeddings, layers called `shared` or
    `projection`. Of transposed convolutions O is what goes in.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    kernels = [x for path, x in leaves if _is_kernel(path)]
    return sum((_off_diagonal(x) for x in kernels), jnp.zeros(()))


def _is_kernel(path: tuple) -> bool:
    names = [getattr(key, "key", None) for key in path]
    return names[-1] == "kernel" and not {*names} & {"shared", "projection"}


def _off_diagonal(kernel: Array) -> Array:
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    products = matrix.T @ matrix
    return jnp.sum(products**2) - jnp.sum(jnp.diagonal(products) ** 2)
