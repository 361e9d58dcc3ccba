"""The weights of the Inception network that FID is defined with: found, checked, converted.

The network is TensorFlow's "inception-2015-12-05" (M. Heusel et al., GANs Trained by a Two
Time-Scale Update Rule, 2017), most often met as pytorch-fid's conversion of it. It is not
torchvision's `inception_v3`: FID through that one is another number.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from aigc_jax import torch_weights
from aigc_jax.errors import UserError

FILE = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
JAX_FID_SHA256 = "4e030efa5bccac3222d975f658d1884f9e00fab24f2812082884539220b90d77"
ENVIRONMENT = "AIGC_INCEPTION_WEIGHTS"
TIMEOUT = 60.0  # seconds without a byte


@dataclasses.dataclass(frozen=True)
class Weights:
    """Checked weights.

    Attributes:
      arrays: name -> float32, exactly `SHAPES`, in its order: PyTorch's names and layout (OIHW).
      path: of the file that they came from.
      sha256: of that file.
      official: whether it is a published file, known by its sha256.
    """

    arrays: dict[str, np.ndarray]
    path: str
    sha256: str
    official: bool


def load(path: str | Path | None = None) -> Weights:
    """Reads, converts and checks Inception's weights.

    Args:
      path: of pytorch-fid's or torch-fidelity's `.pth`, the same arrays as `.npz` or
        `.safetensors`, jax-fid's pickle, or TensorFlow's `classify_image_graph_def.pb`. None: of
        the environment's AIGC_INCEPTION_WEIGHTS, else the official file in the cache
        (~/.cache/aigc_jax, or in XDG_CACHE_HOME), downloaded when it is not there.

    Raises:
      UserError: no file, no download, not this network, or values that are not finite.
    """
    if path is None:
        path = os.environ.get(ENVIRONMENT) or _cached()
    digest = torch_weights.sha256(path)
    arrays = _checked(_read(path), path)
    official = digest in (SHA256, JAX_FID_SHA256)
    if not official:
        logging.warning(
            "%s is none of the published Inception files (sha256 %s...): scores with it compare "
            "only if its values are the same.",
            path,
            digest[:8],
        )
    return Weights(arrays, str(path), digest, official)


def save(arrays: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Writes `Weights.arrays` as an uncompressed `.npz` that `load` and `numpy.load` read."""
    with Path(path).open("wb") as file:
        np.savez(file, **_checked(arrays, path))


# ---- The network's arrays


def _mixed_5(inputs: int, pooled: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (64, inputs, 1, 1),
        "branch5x5_1": (48, inputs, 1, 1),
        "branch5x5_2": (64, 48, 5, 5),
        "branch3x3dbl_1": (64, inputs, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
        "branch_pool": (pooled, inputs, 1, 1),
    }


def _mixed_6(inner: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (192, 768, 1, 1),
        "branch7x7_1": (inner, 768, 1, 1),
        "branch7x7_2": (inner, inner, 1, 7),
        "branch7x7_3": (192, inner, 7, 1),
        "branch7x7dbl_1": (inner, 768, 1, 1),
        "branch7x7dbl_2": (inner, inner, 7, 1),
        "branch7x7dbl_3": (inner, inner, 1, 7),
        "branch7x7dbl_4": (inner, inner, 7, 1),
        "branch7x7dbl_5": (192, inner, 1, 7),
        "branch_pool": (192, 768, 1, 1),
    }


def _mixed_7(inputs: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (320, inputs, 1, 1),
        "branch3x3_1": (384, inputs, 1, 1),
        "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1),
        "branch3x3dbl_1": (448, inputs, 1, 1),
        "branch3x3dbl_2": (384, 448, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3),
        "branch3x3dbl_3b": (384, 384, 3, 1),
        "branch_pool": (192, inputs, 1, 1),
    }


_BLOCKS = {
    "Mixed_5b": _mixed_5(192, 32),
    "Mixed_5c": _mixed_5(256, 64),
    "Mixed_5d": _mixed_5(288, 64),
    "Mixed_6a": {
        "branch3x3": (384, 288, 3, 3),
        "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    },
    "Mixed_6b": _mixed_6(128),
    "Mixed_6c": _mixed_6(160),
    "Mixed_6d": _mixed_6(160),
    "Mixed_6e": _mixed_6(192),
    "Mixed_7a": {
        "branch3x3_1": (192, 768, 1, 1),
        "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    },
    "Mixed_7b": _mixed_7(1280),
    "Mixed_7c": _mixed_7(2048),
}
CONVS: dict[str, tuple[int, ...]] = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
    **{f"{block}.{name}": s for block, convs in _BLOCKS.items() for name, s in convs.items()},
}
"""The 94 convolutions, each followed by a batch norm: (outputs, inputs, height, width)."""
_NORM = ("weight", "bias", "running_mean", "running_var")


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in CONVS.items():
        yield f"{name}.conv.weight", shape
        yield from ((f"{name}.bn.{part}", shape[:1]) for part in _NORM)
    yield "fc.weight", (1008, 2048)
    yield "fc.bias", (1008,)


SHAPES: dict[str, tuple[int, ...]] = dict(_shapes())
"""The 472 arrays of the official file, in its order."""


# ---- Conversion


def _read(path: str | Path) -> dict[str, np.ndarray]:
    with Path(path).open("rb") as file:
        if re.match(rb"\n[\x80-\xff]*[\0-\x7f]\n", file.read(16)):  # node { name
            return _read_graph(path)
    arrays = torch_weights.load(path)
    flax = f"{next(iter(CONVS))}.conv.kernel"
    first = flax if any(name.endswith(flax) for name in arrays) else next(iter(SHAPES))
    arrays = _network(arrays, first)
    return dict(_from_flax(name, array) for name, array in arrays.items())


def _network(arrays: dict[str, np.ndarray], first: str) -> dict[str, np.ndarray]:
    """Those under the prefix of the network's `first` array, e.g. "state_dict.module."."""
    prefixes = [name.removesuffix(first) for name in arrays if name.endswith(first)]
    if not prefixes:
        return arrays
    if len(prefixes) > 1:
        raise UserError(f"The weights hold the network more than once: under {prefixes[:3]}.")
    inside = {name: array for name, array in arrays.items() if name.startswith(prefixes[0])}
    return torch_weights.strip_prefix(inside, prefixes[0])


_FLAX = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _from_flax(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """jax-fid's name and layout to PyTorch's; PyTorch's own pass."""
    scope, _, part = name.rpartition(".")
    if part == "kernel":
        axes = (3, 2, 0, 1) if array.ndim == 4 else tuple(range(array.ndim))[::-1]
        return f"{scope}.weight", array.transpose(axes)
    if scope.endswith(".bn"):
        return f"{scope}.{_FLAX.get(part, part)}", array
    return name, array


# ---- TensorFlow's own file


def _scopes() -> Iterator[tuple[str, str]]:
    """(scope in the GraphDef, name in PyTorch) of every convolution with its batch norm."""
    for i, name in enumerate(name for name in CONVS if name.startswith("Conv2d")):
        yield _nth("conv", i), name
    for i, (block, convs) in enumerate(_BLOCKS.items()):
        towers = {}
        for name in convs:
            branch, nth, letter = re.fullmatch(r"branch_?(.+?)(?:_(\d)([ab]?))?", name).groups()
            scope = _nth("conv", int(nth or 1) - 1)
            if letter:
                scope = "mixed/" + _nth("conv", "ab".index(letter))
            if nth or branch == "pool":
                scope = f"{towers.setdefault(branch, _nth('tower', len(towers)))}/{scope}"
            yield f"{_nth('mixed', i)}/{scope}", f"{block}.{name}"


def _nth(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


def _graph_names() -> Iterator[tuple[str, str]]:
    """(name in the GraphDef, jax-fid's name: the layout is the same)."""
    norm = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    for scope, name in _scopes():
        yield f"{scope}/conv2d_params", f"{name}.conv.kernel"
        for theirs, ours in norm.items():
            yield f"{scope}/batchnorm/{theirs}", f"{name}.bn.{ours}"
    yield "softmax/weights", "fc.kernel"
    yield "softmax/biases", "fc.bias"


def _read_graph(path: str | Path) -> dict[str, np.ndarray]:
    names = dict(_graph_names())
    try:
        nodes = dict(_constants(memoryview(Path(path).read_bytes())))
        arrays = {name: _tensor(nodes[node]) for node, name in names.items() if node in nodes}
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is a damaged GraphDef; get it again ({error!r:.100})") from error
    return dict(_from_flax(name, array) for name, array in arrays.items())


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of a protocol buffer's fields."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        if key & 7 not in (1, 2, 5) or size > len(data) - at:
            raise ValueError(f"field {key} of {size} bytes")
        yield key >> 3, data[at : at + size]
        at += size


def _constants(graph: memoryview) -> Iterator[tuple[str, memoryview]]:
    """(name, TensorProto) of a GraphDef's nodes: node=1 {name=1 attr=5 {2 {tensor=8}}}."""
    for node in (value for number, value in _fields(graph) if number == 1):
        fields = list(_fields(node))
        for attribute in (value for number, value in fields if number == 5):
            tensor = dict(_fields(dict(_fields(attribute)).get(2, memoryview(b"")))).get(8)
            if tensor is not None:
                yield str(dict(fields)[1], "utf-8"), tensor


def _tensor(proto: memoryview) -> np.ndarray:
    """A float TensorProto: dtype=1 shape=2 {dim=2 {size=1}} content=4 or float_val=5."""
    fields = list(_fields(proto))
    if dict(fields).get(1) != 1:
        raise ValueError("a tensor that is not float32")
    dims = [value for number, value in _fields(dict(fields)[2]) if number == 2]
    values = b"".join(value for number, value in fields if number in (4, 5))
    return np.frombuffer(values, "<f4").reshape([dict(_fields(dim))[1] for dim in dims])


# ---- Checks


def _checked(arrays: Mapping[str, np.ndarray], path: str | Path) -> dict[str, np.ndarray]:
    """`arrays` as float32 in the order of `SHAPES`, of which none is missing or besides."""
    arrays = {n: a for n, a in arrays.items() if not n.endswith(".num_batches_tracked")}
    _refuse_other_networks(arrays, path)
    _refuse(path, "lacks", [name for name in SHAPES if name not in arrays])
    _refuse(path, "holds what the network has not", [n for n in arrays if n not in SHAPES])
    wrong = [
        f"{n} {arrays[n].dtype}{arrays[n].shape}, not float32{shape}"
        for n, shape in SHAPES.items()
        if arrays[n].shape != shape or arrays[n].dtype.kind != "f"
    ]
    _refuse(path, "holds other arrays than the network's", wrong)
    with np.errstate(over="ignore"):  # of float64: found to be infinite below
        checked = {name: np.ascontiguousarray(arrays[name], np.float32) for name in SHAPES}
    infinite = [name for name, array in checked.items() if not np.isfinite(array).all()]
    _refuse(path, "holds values that are not finite", infinite)
    return checked


def _refuse(path: str | Path, what: str, names: list[str]) -> None:
    if names:
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(f"{path} {what}: {'; '.join(names[:3])}{more}. Take {FILE}.")


def _refuse_other_networks(arrays: Mapping[str, np.ndarray], path: str | Path) -> None:
    if any("AuxLogits." in name for name in arrays):
        raise UserError(
            f"{path} is torchvision's inception_v3, a different network: FID with it is another "
            f"metric. Take {FILE}."
        )
    if np.shape(arrays.get("fc.weight"))[:1] == (1000,):
        raise UserError(
            f"{path} has a head of 1000 classes, where FID's Inception has 1008: the Inception "
            f"Score with it is another metric. Take {FILE}."
        )


# ---- The official file


def _cached() -> Path:
    """The official file in the cache, which is downloaded where it is not there."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(cache) / "aigc_jax" / FILE
    if not path.exists():
        _download(path)
    elif torch_weights.sha256(path) != SHA256:
        raise UserError(f"{path} is not the official file any more: delete it.")
    return path


def _download(path: Path) -> None:
    """From `ADDRESS` to `path`, which exists only once its sha256 is found right."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            try:
                _fetch(part)
                part.close()
                os.replace(part.name, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part.name)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise UserError(
            f"The Inception weights could not be downloaded ({error}): get {ADDRESS} elsewhere and "
            f"put it at {path}, or name a file with --weights FILE."
        ) from error


def _fetch(part: BinaryIO) -> None:
    """Writes what is at `ADDRESS`; ValueError where its sha256 is not the official one."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(ADDRESS, timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=FILE) as bar:
            while block := response.read(2**20):
                part.write(block)
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != SHA256:
            got = f"{bar.n} bytes of {total}" if total and bar.n < total else f"{bar.n} bytes"
            raise ValueError(f"got {got}, sha256 {digest.hexdigest()[:8]}..., not {SHA256[:8]}...")
