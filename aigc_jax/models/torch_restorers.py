"""Published weights of DnCNN, as networks of this library.

Known by their names and shapes alone: DnCNN-PyTorch's, with batch norm and no biases, and KAIR's,
whose batch norm is merged into convolutions with biases. Both work on images in [0, 1], and so does
`aigc_jax.models.dncnn` inside: the weights need no change of scale.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UserError
from aigc_jax.models.dncnn import Restorer
from aigc_jax.torch_weights import strip_prefix
from aigc_jax.types import Array, PyTree

_NAMED = 3  # keys that a message names
_IRCNN = 7  # convolutions

Leaf = tuple[tuple[str, str, str], tuple[int, ...]]  # collection, layer and name; shape in the file


def from_torch(arrays: Mapping[str, np.ndarray]) -> tuple[Restorer, PyTree]:
    """The DnCNN that a weight file is of, and its variables.

    Args:
      arrays: of the file, as `aigc_jax.torch_weights.load` gives them, of any depth, width and
        number of channels. DataParallel's "module." and a checkpoint's "state_dict." or "params."
        are dropped from names.

    Returns:
      `(module, variables)`: `module.apply(variables, x)` restores x (B, H, W, C) in [-1, 1]; batch
      norm uses its running statistics, as PyTorch does after `eval()`.

    Raises:
      UserError: of another network; the line names what differs. An empty array. IRCNN, which
        has the names and shapes that a DnCNN of 7 convolutions would have.
    """
    for wrapping in ("state_dict.", "params.", "module."):
        arrays = strip_prefix(arrays, wrapping)
    arrays = {key: a for key, a in arrays.items() if not key.endswith(".num_batches_tracked")}
    empty = next((key for key, a in arrays.items() if a.size == 0), None)
    if empty is not None:
        raise UserError(f"{empty} is empty, {arrays[empty].shape}: this is no trained network.")
    module = _module(arrays)
    leaves = _leaves(module)
    differences = _differences(leaves, arrays)
    if differences:
        kind = "batch norm" if module.norm == "batch" else "biases"
        raise UserError(
            "These are the weights of no network known here: the nearest is a DnCNN of "
            f"{module.depth} convolutions with {kind}, but for {_some(differences)}."
        )
    variables = {}
    for key, ((collection, layer, name), _) in leaves.items():
        variables.setdefault(collection, {}).setdefault(layer, {})[name] = _ours(arrays[key])
    return module, variables


def _module(arrays: Mapping[str, np.ndarray]) -> Restorer:
    """The network that the arrays may be of, by the first layer and their number."""
    roots = [root for root in ("dncnn", "model") if _is_kernel(arrays.get(f"{root}.0.weight"))]
    if not roots:
        raise UserError(
            "These are the weights of no restorer known here (DnCNN as DnCNN-PyTorch and KAIR "
            f"save it): they begin with {_some(list(arrays))}."
        )
    merged, depth = roots[0] == "model", sum(map(_is_kernel, arrays.values()))
    if merged and depth == _IRCNN:
        raise UserError("These are IRCNN's weights, with dilated convolutions: take DnCNN's.")
    width, channels = arrays[f"{roots[0]}.0.weight"].shape[:2]
    norm = "none" if merged else "batch"
    return Restorer(channels, max(depth, 3), width, norm, use_bias=merged)


def _is_kernel(array: np.ndarray | None) -> bool:
    return array is not None and array.ndim == 4


def _some(words: list[str]) -> str:
    more = f", and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return f"{', '.join(words[:_NAMED])}{more}"


def _leaves(module: Restorer) -> dict[str, Leaf]:
    """The network's variables by their keys in the file."""
    leaves, last = {}, module.depth - 1
    merged = module.norm == "none"
    root, step = ("model", 2) if merged else ("dncnn", 3)  # convolution, (norm,) ReLU
    for i in range(module.depth):
        layer = {0: "first", last: "last"}.get(i, f"conv_{i}")
        key = f"{root}.{step * i if merged else max(step * i - 1, 0)}"
        features = module.channels if i == last else module.width
        inputs = module.width if i else module.channels
        leaves[f"{key}.weight"] = ("params", layer, "kernel"), (features, inputs, 3, 3)
        if merged:
            leaves[f"{key}.bias"] = ("params", layer, "bias"), (features,)
        elif 0 < i < last:
            leaves |= _norm_leaves(f"{root}.{step * i}", f"norm_{i}", module.width)
    return leaves


def _norm_leaves(key: str, layer: str, width: int) -> dict[str, Leaf]:
    return {
        f"{key}.weight": (("params", layer, "scale"), (width,)),
        f"{key}.bias": (("params", layer, "bias"), (width,)),
        f"{key}.running_mean": (("batch_stats", layer, "mean"), (width,)),
        f"{key}.running_var": (("batch_stats", layer, "var"), (width,)),
    }


def _differences(leaves: Mapping[str, Leaf], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Why the arrays are not of the network, in words."""
    words = []
    for key, a in arrays.items():
        if key not in leaves:
            words.append(f"{key} {a.shape}")
        elif a.shape != leaves[key][1]:
            words.append(f"{key} {a.shape} instead of {leaves[key][1]}")
    return words + [f"no {key}" for key in leaves if key not in arrays]


def _ours(array: np.ndarray) -> Array:
    axes = (2, 3, 1, 0) if array.ndim == 4 else range(array.ndim)
    return jnp.asarray(np.transpose(array, axes), jnp.float32)
