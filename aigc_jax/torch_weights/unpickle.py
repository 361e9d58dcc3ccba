"""Pickles are programs: here a small machine runs the few opcodes that weights need."""

import io
import math
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from aigc_jax.errors import UserError
from aigc_jax.torch_weights.declared import MAX_STEPS, Array, DType, Storage, sizes


class Unpickler:
    """The opcodes of protocols 2 to 5 that weights need, over plain data.

    Not a `pickle.Unpickler` with another `find_class`: that one allocates as many memo slots as
    the file says, hashes tuples nested without end until the stack overflows, and lets BUILD set
    attributes of what was found. Here nothing is called but the functions of `_FUNCTIONS`, which
    declare arrays, and BUILD fills a declared array or is ignored.
    """

    def __init__(self, order: str = "<") -> None:
        self.order = order  # "<" or ">", of the bytes of torch's storages
        self.storages: dict[str, Storage] = {}
        self.steps = 0

    def run(self, file: io.BytesIO) -> Any:
        """The object of the pickle at the file's position, which moves to the pickle's end."""
        self.stack, self.marks, self.memo = [], [], {}
        for opcode, arg, _ in pickletools.genops(file):
            self._charge(1)
            self._step(opcode.name, arg)
        return self.stack[-1]

    def _charge(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise UserError("is a pickle of more steps than weights take.")

    def _step(self, opcode: str, arg: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case _ if opcode in _LITERALS:
                stack.append(arg)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if arg is None else arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"DICT": dict, "LIST": list, "TUPLE": tuple}[opcode[6:]]())
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(opcode[5:])))
            case "APPEND" | "APPENDS":
                values = self._pop("1" if opcode == "APPEND" else "")
                self._top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self._pop("2" if opcode == "SETITEM" else "")
                _set(self._top(dict), zip(values[::2], values[1::2], strict=True))
            case "GLOBAL":
                stack.append(_find(arg))
            case "STACK_GLOBAL":
                stack.append(_find(" ".join(self._pop("2"))))
            case "REDUCE":
                stack.append(self._call(*self._pop("2")))
            case "BUILD":
                (state,) = self._pop("1")
                _build(stack[-1], state)
            case "BINPERSID":
                stack.append(self._storage(*self._pop("1")[0]))
            case _:
                raise UserError(f"is refused: its pickle uses {opcode} {arg or ''!r:.60}.")

    def _pop(self, count: str) -> list:
        """The last so many values; without a count, those since the last mark."""
        start = len(self.stack) - int(count) if count else self.marks.pop()
        if start < 0:
            raise UserError("is damaged: its pickle takes more than it put.")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise UserError(f"is refused: its pickle adds to what is not a {kind.__name__}.")
        return self.stack[-1]

    def _call(self, function: object, args: tuple) -> object:
        if not isinstance(function, _Global) or function.name not in _FUNCTIONS:
            raise UserError("is refused: its pickle calls what makes no array.")
        self._charge(sum(len(arg) for arg in args if isinstance(arg, list)))
        return _FUNCTIONS[function.name](*args)

    def _storage(self, tag: str, kind: "_Global", key: str, _device: str, *size: Any) -> Storage:
        """Of torch's persistent id, which names something inside of this file, never a path."""
        if tag != "storage" or kind.name not in _STORAGES or any(size[1:]):
            raise UserError(f"is refused: its pickle refers to {tag!r:.40}, no storage of its own.")
        new = Storage(DType(_STORAGES[kind.name], self.order), *sizes(size[:1]))
        if self.storages.setdefault(key, new) != new:
            raise UserError(f"is damaged: storage {key!r:.40} is declared twice.")
        return self.storages[key]


class _Global(NamedTuple):
    name: str  # "module name"


def _find(name: str) -> _Global:
    if name not in _FUNCTIONS and name not in _STORAGES and name not in _MARKERS:
        raise UserError(
            f"is refused: its pickle asks for {name.replace(' ', '.')!r:.100}, and only arrays are "
            "read; save its state dict alone."
        )
    return _Global(name)


def _build(target: object, state: Any) -> None:
    if isinstance(target, DType):
        _version, target.order, *record = state[:5]
        if target.order not in ("<", ">", "=", "|") or record != [None] * 3:
            raise UserError("holds an array of records, which is not of numbers.")
    elif isinstance(target, Array) and target.dtype is None:
        *_, shape, dtype, fortran, data = state
        filled = _numpy_array(data, dtype, shape, "F" if fortran else "C")
        target.__dict__.update(filled.__dict__)
    elif not isinstance(target, dict):  # torch hangs `_metadata` on a state dict: of no use here
        raise UserError("is refused: its pickle sets attributes.")


def _set(target: dict, items: Iterable[tuple[object, object]]) -> None:
    for key, value in items:
        if not isinstance(key, str | bytes | int | float | None):
            raise UserError(f"is refused: its pickle has a {type(key).__name__} for a key.")
        target[key] = value


def _ordered_dict(items: Iterable[tuple[object, object]] = ()) -> dict:
    made = {}
    _set(made, items)
    return made


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Array:
    (offset,), size, stride = sizes([offset]), sizes(size), sizes(stride)
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.numel or (count and last >= storage.numel):
        raise UserError(f"is damaged: a tensor {size} of {storage.numel} stored values.")
    return Array(storage.dtype, size, storage, strides=stride, offset=offset if count else 0)


def _numpy_array(data: Any, dtype: DType, shape: tuple, order: str, axes: Any = None) -> Array:
    if not isinstance(data, bytes | bytearray | str) or not isinstance(dtype, DType):
        raise UserError("holds an array whose values are no plain bytes.")
    array = Array(dtype, sizes(shape), data, "F" if order == "F" else "C")
    return array if axes is None else _transposed(array, axes)


def _transposed(array: Array, axes: Iterable[int]) -> Array:
    """Since numpy 2.3 protocol 5 keeps transposed arrays as they lie in memory."""
    if len(array.data) != math.prod(array.shape) * array.dtype.numpy().itemsize:
        raise UserError("is damaged: a transposed array is not of its declared size.")
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(len(array.shape))]
    if sorted(axes) != list(range(len(strides))):
        raise UserError(f"is damaged: axes {axes!r:.60} of an array {array.shape}.")
    shape = tuple(array.shape[axis] for axis in axes)
    return Array(array.dtype, shape, array.data, strides=tuple(strides[axis] for axis in axes))


def _dtype(code: object, *_: Any) -> DType:
    return DType("bfloat16" if code == _Global("ml_dtypes bfloat16") else code, "=")


def _text_as_bytes(text: str, encoding: str) -> str:
    """Protocol 2 has no bytes and Python 3 writes them as text, which is kept until `make`."""
    if encoding != "latin1":
        raise UserError(f"is refused: its pickle holds bytes written as {encoding!r:.20}.")
    return text


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MARKERS = {"numpy ndarray", "ml_dtypes bfloat16"}
_STORAGES = {
    f"{module} {kind}Storage": code
    for module in ("torch", "torch.cuda")
    for kind, code in {
        **{"Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bfloat16", "Bool": "b1"},
        **{"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1"},
        **{"ComplexFloat": "c8", "ComplexDouble": "c16"},
    }.items()
}
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "numpy dtype": _dtype,
    "_codecs encode": _text_as_bytes,
    **dict.fromkeys(["builtins bytes", "__builtin__ bytes"], lambda: b""),
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _FUNCTIONS[f"{_core}.multiarray _reconstruct"] = lambda *_: Array()
    _FUNCTIONS[f"{_core}.multiarray scalar"] = lambda *_: None
    _FUNCTIONS[f"{_core}.numeric _frombuffer"] = _numpy_array
