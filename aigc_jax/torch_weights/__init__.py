"""Published weight files to named numpy arrays: nothing in a file is executed, torch is not used.

Reads what `torch.save` writes (zip archives, and the plain pickles from before PyTorch 1.6),
safetensors, `.npz`, and pickles of nested dicts of numpy arrays; told apart by their first bytes.
"""

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from aigc_jax.errors import UserError
from aigc_jax.torch_weights.declared import Array, DType, collect, sizes
from aigc_jax.torch_weights.unpickle import Unpickler

_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # LZMA takes memory as the file says
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weight file by name, in the file's order.

    Args:
      path: of a `.pth` or `.pt` (a state dict, wrapped in other dicts or not), `.safetensors`,
        `.npz`, or `.pkl` of numpy arrays. The content decides, not the ending.

    Returns:
      name -> array on memory of its own, contiguous, of the shape and dtype in the file; float16
      and bfloat16 are widened to float32. Names of nested dicts and lists are joined by dots;
      numbers, texts and None beside the arrays are left out.

    Raises:
      UserError: the file is missing, damaged, no weight file, or holds more than data.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            return collect(_read(file, size), _limit(size))
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except Exception as error:  # damaged bytes make zipfile, json, numpy, ... raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is damaged or cut short; get it again ({reason})") from error


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def strip_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """`arrays` without `prefix` in the names that begin with it, e.g. DataParallel's "module."."""
    stripped = {name.removeprefix(prefix): array for name, array in arrays.items()}
    if len(stripped) < len(arrays):
        raise UserError(f"Some arrays are there both with and without {prefix!r} in their names.")
    return stripped


def _unreadable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror or error}.")


def _limit(size: int) -> int:
    """Bytes of arrays that a file of `size` bytes may make: tied, widened or compressed ones."""
    return 16 * size + 2**26


def _read(file: BinaryIO, size: int) -> object:
    head = file.read(512)
    file.seek(0)
    if not head:
        raise UserError("is empty; get it again.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError("is a Git LFS pointer, not the weights; fetch them with `git lfs pull`.")
    if head[8:10] in (b'{"', b"{}", b"{ ", b"{\n"):
        return _read_safetensors(file, size)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_zip(file, size)
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _read_pickles(file)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise UserError("is a web page, not weights: its download failed; get it again.")
    raise UserError(
        f"is no torch, .safetensors, .npz or .pkl weight file: it begins with {head[:8]!r}."
    )


def _read_zip(file: BinaryIO, size: int) -> object:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _limit(size):
            raise UserError("unpacks to far more than its size: these are no weights.")
        if sum(entry.compress_size for entry in entries) > size:  # zipfile would make room for it
            raise UserError("is damaged or cut short: its list of entries is longer; get it again.")
        if {entry.compress_type for entry in entries} - _COMPRESSIONS:
            raise UserError("is damaged: neither torch nor numpy compresses in its way.")
        names = archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if pickles:
            return _read_torch_zip(archive, names, pickles[0].removesuffix("data.pkl"))
        npys = [name for name in names if name.endswith(".npy")]
        return {name.removesuffix(".npy"): _read_npy(archive.read(name)) for name in npys}


def _read_torch_zip(archive: zipfile.ZipFile, names: list[str], root: str) -> object:
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in names):
        raise UserError(
            "is a TorchScript archive: it holds code, which is never run here. Take the network's "
            "state dict (of FID's Inception: pt_inception-2015-12-05-6726825d.pth)."
        )
    big = f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big"
    machine = Unpickler(">" if big else "<")
    tree = machine.run(io.BytesIO(archive.read(f"{root}data.pkl")))
    for key, storage in machine.storages.items():
        storage.fill(archive.read(f"{root}data/{key}"))
    return tree


def _read_npy(data: bytes) -> Array:
    stream = io.BytesIO(data)
    first = np.lib.format.read_magic(stream) == (1, 0)
    header = "read_array_header_1_0" if first else "read_array_header_2_0"
    shape, fortran, dtype = getattr(np.lib.format, header)(stream)
    kind = DType(dtype.str[1:], dtype.str[0])
    return Array(kind, sizes(shape), memoryview(data)[stream.tell() :], "F" if fortran else "C")


_SAFETENSORS = {
    **{"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "BOOL": "b1", "C64": "c8"},
    **{f"{kind}{8 * n}": f"{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)},
}


def _read_safetensors(file: BinaryIO, size: int) -> dict[str, Array]:
    """A JSON header, then values without gaps (huggingface/safetensors, README, Format)."""
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise UserError(f"is cut short: its header takes {length} bytes; get it again.")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _SAFETENSORS:
            raise UserError(f"holds {name!r:.100} in {entry['dtype']!r:.20}, which is not read.")
        start, stop = entry["data_offsets"]
        if start != end or not start <= stop <= size - 8 - length:
            raise UserError(f"is damaged or cut short at {name!r:.100}; get it again.")
        dtype, end = DType(_SAFETENSORS[entry["dtype"]]), stop
        arrays[name] = Array(dtype, sizes(entry["shape"]), file.read(stop - start))
    return arrays


def _read_pickles(file: BinaryIO) -> object:
    """A pickle of arrays, or torch's legacy file: five pickles, then the storages' values."""
    data = file.read()
    stream, machine = io.BytesIO(data), Unpickler()
    tree = machine.run(stream)
    if tree != _LEGACY_MAGIC:
        return tree
    _protocol, _system, tree, keys = (machine.run(stream) for _ in range(4))
    position = stream.tell()
    for key in keys:
        storage = machine.storages[key]
        if struct.unpack_from("<q", data, position) != (storage.numel,):
            raise UserError(f"is damaged: storage {key!r:.40} is not of its declared size.")
        stop = position + 8 + storage.numel * storage.dtype.numpy().itemsize
        storage.fill(memoryview(data)[position + 8 : stop])
        position = stop
    return tree
