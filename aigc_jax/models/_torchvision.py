"""Weights under torchvision's names, as the parameters of our networks."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UserError
from aigc_jax.types import Array, PyTree

# Of weights, ours -> theirs: convolutions (h, w, in, out) -> (out, in, h, w), linear (in, out) ->
# (out, in).
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_TO_OURS = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def to_params(
    arrays: Mapping[str, np.ndarray], prefixes: Mapping[str, str], like: PyTree, network: str
) -> dict[str, dict[str, Array]]:
    """The parameters {layer: {"kernel", "bias"}} of a network, from arrays of a torch file.

    Args:
      arrays: by their torch names; those that the network doesn't have are ignored.
      prefixes: of the torch names, by our layer: "features.0" of "features.0.weight".
      like: the network's parameters, or anything with their shapes.
      network: its name, for the message.

    Returns:
      float32 arrays, of the shapes of `like`.

    Raises:
      UserError: names that are missing, or arrays of another shape.
    """
    keys = {
        (layer, leaf): f"{prefixes[layer]}.{'weight' if leaf == 'kernel' else leaf}"
        for layer, leaves in like.items()
        for leaf in leaves
    }
    shapes = {key: like[layer][leaf].shape for (layer, leaf), key in keys.items()}
    _check(
        arrays, {key: tuple(s[i] for i in _TO_TORCH[len(s)]) for key, s in shapes.items()}, network
    )
    return {
        layer: {leaf: _ours(arrays[keys[layer, leaf]]) for leaf in leaves}
        for layer, leaves in like.items()
    }


def _ours(array: np.ndarray) -> Array:
    return jnp.asarray(np.transpose(array, _TO_OURS[array.ndim]), jnp.float32)


def _check(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], network: str
) -> None:
    found = {key: np.shape(arrays[key]) if key in arrays else None for key in shapes}
    wrong = [
        f"{key} is missing" if found[key] is None else f"{key} is {found[key]}, not {shape}"
        for key, shape in shapes.items()
        if found[key] != shape
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"These are not torchvision's weights of {network}: {', '.join(wrong[:5])}{more}."
        )
