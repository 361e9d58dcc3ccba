"""What a file declares: arrays that are made only once their size is known to fit the file."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from aigc_jax.errors import UserError

MAX_STEPS = 2_000_000  # opcodes of a pickle, and entries of what it holds
_MAX_ARRAYS = 100_000
_MAX_DEPTH = 32
_MAX_NAME = 1000


@dataclasses.dataclass
class DType:
    """A dtype of numbers or letters: numpy's code without its byte order, or "bfloat16"."""

    code: str
    order: str = "<"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,9}|bfloat16", str(self.code)):
            raise UserError(f"holds an array of dtype {self.code!r:.40}, which is not of numbers.")

    def numpy(self) -> np.dtype:
        """As it is in the file."""
        if self.code == "bfloat16":
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.order + self.code)

    def out(self) -> np.dtype:
        """As it is returned: native byte order, no half precision."""
        half = self.code in ("f2", "bfloat16")
        return np.dtype(np.float32) if half else np.dtype(self.code)


@dataclasses.dataclass
class Storage:
    """`numel` values that torch's tensors look into; their bytes may be found later."""

    dtype: DType
    numel: int
    data: Any = None

    def fill(self, data: Any) -> None:
        """Sets the bytes; UserError where they are too few."""
        if len(data) < self.numel * self.dtype.numpy().itemsize:
            raise UserError(f"is damaged or cut short: {self.numel} values in {len(data)} bytes.")
        self.data = data


@dataclasses.dataclass
class Array:
    """A view of `data`: bytes, a str of one character a byte, or a Storage.

    Strides and offset are in values; strides None: contiguous in `order`, and `data` is no longer
    than the array. dtype None: a pickled array that was not filled yet.
    """

    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    data: Any = b""
    order: str = "C"
    strides: tuple[int, ...] | None = None
    offset: int = 0

    def make(self) -> np.ndarray:
        """The array, on memory of its own."""
        data, dtype = self._bytes(), self.dtype.numpy()
        strides = None
        if self.strides is not None:
            strides = [stride * dtype.itemsize for stride in self.strides]
        elif len(data) != math.prod(self.shape) * dtype.itemsize:
            raise UserError(f"is damaged: {len(data)} bytes for {self.shape} of {dtype}.")
        offset = self.offset * dtype.itemsize
        view = np.ndarray(self.shape, dtype, data, offset, strides, self.order)
        if self.dtype.code == "bfloat16" and self.dtype.order == ">":
            view = view.byteswap()
        return view.astype(self.dtype.out(), order="C")

    def _bytes(self) -> Any:
        data = self.data.data if isinstance(self.data, Storage) else self.data
        if data is None:  # numpy would read beyond an empty buffer where it is given strides
            raise UserError("is damaged: it has a tensor and not its values.")
        return data.encode("latin1") if isinstance(data, str) else data


def sizes(values: Iterable[int]) -> tuple[int, ...]:
    """A shape, strides, ... of a file; UserError unless whole numbers from 0."""
    values = tuple(values)
    if any(type(value) is not int or not 0 <= value < 2**48 for value in values):
        raise UserError("is damaged: it declares a size that is no whole number from 0.")
    return values


def collect(tree: object, budget: int) -> dict[str, np.ndarray]:
    """Every array of a tree of dicts, lists and tuples, made, at most `budget` bytes of them."""
    arrays = {}
    for name, array in _leaves(tree):
        if array.dtype is None:
            raise UserError(f"is damaged: array {name!r} was never filled.")
        if array.dtype.code[0] in "SU":
            continue
        budget -= math.prod(array.shape) * array.dtype.out().itemsize
        if budget < 0 or len(arrays) >= _MAX_ARRAYS:
            raise UserError("declares more arrays than a file of its size can hold.")
        if name in arrays:
            raise UserError(f"holds two arrays called {name!r}.")
        arrays[name] = array.make()
    if not arrays:
        raise UserError("holds no named arrays.")
    return arrays


def _leaves(tree: object) -> Iterator[tuple[str, Array]]:
    todo, steps = [("", tree, 0)], 0
    while todo:
        name, node, depth = todo.pop()
        if isinstance(node, Array) and name:
            yield name, node
        elif isinstance(node, dict | list | tuple):
            steps += len(node)
            if steps > MAX_STEPS or depth > _MAX_DEPTH:
                raise UserError("nests more deeply, or more often, than weights do.")
            todo += [(_join(name, key), value, depth + 1) for key, value in _nested(node)][::-1]


def _nested(node: dict | list | tuple) -> Iterator[tuple[object, object]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, Array | dict | list | tuple):
            yield key, value


def _join(name: str, key: object) -> str:
    joined = f"{name}.{key}" if name else str(key)
    if len(joined) > _MAX_NAME:
        raise UserError(f"has a name of more than {_MAX_NAME} letters.")
    return joined
