"""Published weights of image translators, as networks of this library.

Known by their names and shapes alone: the residual generators of CycleGAN and CUT, pix2pix's U-Net
and the PatchGAN, as the PyTorch repositories of these papers save them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import models
from aigc_jax.errors import UserError
from aigc_jax.models import patchgan, pix2pix_unet, resnet_translator
from aigc_jax.torch_weights import strip_prefix
from aigc_jax.types import Array, PyTree

_THEIRS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_STATISTICS = ("running_mean", "running_var")
_TO_TORCH, _TO_OURS = (3, 2, 0, 1), (2, 3, 1, 0)  # of kernels, those of transposed ones too
_NAMED = 3  # keys that a message names
_DEEPEST = 12  # levels; a file may claim any number


class _Candidate(NamedTuple):
    """A network that the arrays may be of.

    Attributes:
      name: for messages, without its norm.
      channels: of its input.
      norm: "batch" or "instance".
      layers: theirs by ours, "model.1" by "first".
      filters: the buffers of blur filters, by key.
    """

    name: str
    module: nn.Module
    channels: int
    norm: str
    layers: dict[str, str]
    filters: dict[str, np.ndarray]


def from_torch(arrays: Mapping[str, np.ndarray]) -> tuple[nn.Module, PyTree]:
    """The network that a weight file is of, and its variables.

    Args:
      arrays: of the file, as `aigc_jax.torch_weights.load` gives them: of `resnet_translator` with
        any width, blocks and channels, from training with dropout or without, plain or with CUT's
        blur filters; of `pix2pix_unet` of any depth, with batch or instance norm; of `patchgan`
        likewise. DataParallel's "module." and a checkpoint's "state_dict." are dropped from names;
        so are the running statistics that older files have of instance norms, as PyTorch's own
        code does.

    Returns:
      `(module, variables)`: `module.apply(variables, x, train=False)` takes x (B, H, W, C) in
      [-1, 1], sides multiples of `multiple(module)`. Generators return images, float32 in [-1, 1];
      a PatchGAN logits. Batch norm uses its running statistics, as PyTorch does after `eval()`.

    Raises:
      UserError: of another network; the line names the nearest and what differs. An empty array.
    """
    for wrapping in ("state_dict.", "module."):
        arrays = strip_prefix(arrays, wrapping)
    arrays = {key: a for key, a in arrays.items() if not key.endswith(".num_batches_tracked")}
    empty = next((key for key, a in arrays.items() if a.size == 0), None)
    if empty is not None:
        raise UserError(f"{empty} is empty, {arrays[empty].shape}: this is no trained network.")
    found = [(c, _leaves(c)) for c in _candidates(arrays)]
    if not found:
        raise UserError(
            "These are the weights of no translator known here (the ResNet generators of CycleGAN "
            f"and CUT, pix2pix's U-Net, the PatchGAN): they begin with {_some(list(arrays))}."
        )
    differences = [_differences(*pair, arrays) for pair in found]
    nearest = min(range(len(found)), key=lambda i: len(differences[i]))
    candidate, leaves = found[nearest]
    if differences[nearest]:
        raise UserError(
            f"These are the weights of no network known here: the nearest is {candidate.name} with "
            f"{candidate.norm} norm, but for {_some(differences[nearest])}."
        )
    return candidate.module, _variables(candidate, leaves, arrays)


def multiple(module: nn.Module) -> int:
    """The sides of images for a network of `from_torch` are multiples of this."""
    return models.multiple(module)


def channels(module: nn.Module, variables: PyTree) -> tuple[int, int]:
    """Of the images that a network of `from_torch` takes, and of those (or logits) it returns."""
    first = {"first", "down_0", "Conv_0"} & set(variables["params"])
    taken = variables["params"][first.pop()]["kernel"].shape[2]
    return taken, getattr(module, "channels", 1)


def _some(words: list[str]) -> str:
    more = f", and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return f"{', '.join(words[:_NAMED])}{more}"


# ------------------------------------------------------------------ what the arrays may be of


def _candidates(arrays: Mapping[str, np.ndarray]) -> Iterator[_Candidate]:
    """The networks whose first layer the arrays have."""
    blur = any(key.endswith(".filt") for key in arrays)
    if np.ndim(arrays.get("model.1.weight")) == 4:
        yield _resnet(arrays, blur)
    if np.ndim(arrays.get("model.model.0.weight")) == 4:
        yield _unet(arrays)
    if np.ndim(arrays.get("model.0.weight")) == 4:
        yield _patchgan(arrays, blur)


def _resnet(arrays: Mapping[str, np.ndarray], blur: bool) -> _Candidate:
    """Mirror, first, norm, ReLU, two changes of size, blocks, two more, mirror, last."""
    width, channels = arrays["model.1.weight"].shape[:2]
    blocks = _count(arrays, r"model\.\d+\.conv_block\.") or 9
    second = 6 if any(key.endswith(".conv_block.6.weight") for key in arrays) else 5
    step, start = (4, 12) if blur else (3, 10)  # a change of size has a filter beside three layers
    end = start + blocks
    last = f"model.{end + 2 * step + 1}"
    layers = {"first": "model.1", "last": last}
    for i in range(2):
        layers[f"downs_{i}"] = f"model.{4 + step * i}"
        layers[f"ups_{i}"] = f"model.{end + step * i + blur}"
    for i in range(blocks):
        layers[f"residual_{2 * i}"] = f"model.{start + i}.conv_block.1"
        layers[f"residual_{2 * i + 1}"] = f"model.{start + i}.conv_block.{second}"
    filters = {}
    for k, down, up in ((2, 7, end + step), (4, 11, end)) if blur else ():
        filters[f"model.{down}.filt"] = _filter((1, 2, 1), k * width)
        filters[f"model.{up}.filt"] = 4 * _filter((1, 3, 3, 1), k * width)
    module = resnet_translator.Generator(
        _outputs(arrays, last, channels), width, blocks, "blur" if blur else "transpose"
    )
    name = f"a ResNet generator of {blocks} blocks{' and blur filters' if blur else ''}"
    return _Candidate(name, module, channels, "instance", layers, filters)


def _unet(arrays: Mapping[str, np.ndarray]) -> _Candidate:
    """Each level holds the next: first, next, ReLU, last; then ReLU, down, norm, next, ..."""
    width, channels = arrays["model.model.0.weight"].shape[:2]
    inside = _count(arrays, r"model\.model\.1(\.model\.3)*\.model\.1\.weight")
    levels = min(1 + inside, _DEEPEST)
    layers = {"down_0": "model.model.0", "up_0": "model.model.3"}
    for i in range(1, levels):
        level, innermost = f"model.model.1{'.model.3' * (i - 1)}.model", i == levels - 1
        up = 3 if innermost else 5
        layers |= {f"down_{i}": f"{level}.1", f"down_norm_{i}": f"{level}.2"}
        layers |= {f"up_{i}": f"{level}.{up}", f"up_norm_{i}": f"{level}.{up + 1}"}
    norm = _norm(arrays, "model.model.0")
    module = pix2pix_unet.Generator(
        _outputs(arrays, "model.model.3", channels), width, levels, norm
    )
    return _Candidate(f"a U-Net of {levels} levels", module, channels, norm, layers, {})


def _patchgan(arrays: Mapping[str, np.ndarray], blur: bool) -> _Candidate:
    """First, LeakyReLU; convolution, norm, LeakyReLU, ...; last; filters where it halves."""
    width, channels = arrays["model.0.weight"].shape[:2]
    convolutions = sum(a.ndim == 4 and key.endswith(".weight") for key, a in arrays.items())
    depth = min(max(convolutions - 2, 1), _DEEPEST)
    halved = depth if blur else 0
    places = [0, *(3 * i + 2 + min(i + 1, halved) for i in range(depth + 1))]
    layers = {f"Conv_{i}": f"model.{place}" for i, place in enumerate(places)}
    for i, place in enumerate(places[1:-1]):
        layers[f"BatchNorm_{i}"] = f"model.{place + 1}"
    filters = {
        f"model.{place - 1}.filt": _filter((1, 2, 1), width * min(1 << i, 8))
        for i, place in enumerate(places[1 : 1 + halved])
    }
    norm = _norm(arrays, layers["Conv_1"])
    module = patchgan.Discriminator(width, depth, norm, antialias=blur)
    name = f"a PatchGAN of {depth} layers{' and blur filters' if blur else ''}"
    return _Candidate(name, module, channels, norm, layers, filters)


def _count(arrays: Mapping[str, np.ndarray], pattern: str) -> int:
    """How many different beginnings of the names match."""
    matches = (re.match(pattern, key) for key in arrays)
    return len({match.group() for match in matches if match})


def _outputs(arrays: Mapping[str, np.ndarray], layer: str, default: int) -> int:
    """Channels of a result, by the bias of the layer that makes it."""
    return arrays[f"{layer}.bias"].size if f"{layer}.bias" in arrays else default


def _norm(arrays: Mapping[str, np.ndarray], layer: str) -> str:
    """Convolutions before a batch norm have no bias."""
    return "instance" if f"{layer}.bias" in arrays else "batch"


def _filter(row: tuple[int, ...], channels: int) -> np.ndarray:
    """A blur filter's buffer, which sums to 1 in each channel."""
    row = np.array(row) / sum(row)
    return np.tile(np.outer(row, row), (channels, 1, 1, 1))


# ------------------------------------------------------------------ whether they are, and what of


def _leaves(candidate: _Candidate) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """The network's variables by their keys in the file: path, and shape there."""
    module = candidate.module
    side = 16 << max(getattr(module, "levels", 0), getattr(module, "num_layers", 0))
    x = jax.ShapeDtypeStruct((1, side, side, candidate.channels), jnp.float32)
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        collection, layer, name = (part.key for part in path)
        key = f"{candidate.layers[layer]}.{_THEIRS.get(name, name)}"
        shape = tuple(leaf.shape[i] for i in _TO_TORCH) if leaf.ndim == 4 else leaf.shape
        leaves[key] = (collection, layer, name), shape
    return leaves


def _differences(
    candidate: _Candidate, leaves: Mapping[str, tuple], arrays: Mapping[str, np.ndarray]
) -> list[str]:
    """Why the arrays are not of the candidate, in words."""
    words = _other_norm(candidate, arrays)
    shapes = {key: shape for key, (_, shape) in leaves.items()}
    shapes |= {key: a.shape for key, a in candidate.filters.items()}
    for key, a in arrays.items():
        if key in shapes and a.shape != shapes[key]:
            words.append(f"{key} {a.shape} instead of {shapes[key]}")
        elif key in candidate.filters and not np.allclose(a, candidate.filters[key], atol=1e-3):
            words.append(f"other values in {key}")
        elif key not in shapes and not _is_dropped(candidate, key):
            words.append(f"{key} {a.shape}")
    return words + [f"no {key}" for key in shapes if key not in arrays]


def _other_norm(candidate: _Candidate, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """That an instance norm's place is taken by one with weights, in words."""
    scaled = any(key.endswith(".weight") and a.ndim == 1 for key, a in arrays.items())
    if candidate.norm == "batch" or not scaled:
        return []
    norm = _norm(arrays, next(iter(candidate.layers.values())))
    return ["batch norm" if norm == "batch" else "weights of its norm (affine)"]


def _is_dropped(candidate: _Candidate, key: str) -> bool:
    return candidate.norm == "instance" and key.endswith(_STATISTICS)


def _variables(
    candidate: _Candidate, leaves: Mapping[str, tuple], arrays: Mapping[str, np.ndarray]
) -> PyTree:
    variables = {}
    for key, ((collection, layer, name), _) in leaves.items():
        layers = variables.setdefault(collection, {})
        layers.setdefault(layer, {})[name] = _ours(arrays[key])
    return variables


def _ours(array: np.ndarray) -> Array:
    axes = _TO_OURS if array.ndim == 4 else range(array.ndim)
    return jnp.asarray(np.transpose(array, axes), jnp.float32)
