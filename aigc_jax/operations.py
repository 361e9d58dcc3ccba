"""Operations on images as users write them: `"rotate(15),flip,crop(0.8)"`.

Each is a name and, in parentheses, its arguments: numbers, or ranges `a..b` of which every image
draws its own, uniformly. Arguments that have defaults may be left out from the right on.

A family of operations is a `Kinds`: one function each, with what its parameters may be.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aigc_jax.errors import UserError, did_you_mean

_ITEM = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\)\s*)?")
_NUMBER = r"[-+]?(?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_ARGUMENT = re.compile(rf"\s*({_NUMBER})\s*(?:\.\.\s*({_NUMBER})\s*)?")


class Range(NamedTuple):
    """What an argument is drawn from; a plain number is a range of one."""

    low: float
    high: float

    def __str__(self) -> str:
        ends = (self.low,) if self.low == self.high else self
        return "..".join(f"{end:g}" for end in ends)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One entry of a list, checked: a known name, and a range for each of its parameters."""

    name: str
    args: tuple[Range, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({','.join(map(str, self.args))})" if self.args else self.name


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What an argument may be.

    Attributes:
      low, high: its least and greatest value.
      default: where it is left out; None: it can't be.
      whole: whether it counts something; a range then draws each of its numbers alike, both ends
        among them.
    """

    name: str
    low: float
    high: float
    default: Range | None = None
    whole: bool = False

    def check(self, value: Range, text: str) -> None:
        """UserError, naming the nearest valid, for what is out of range or of order."""
        for end in value:
            nearest = min(max(end, self.low), self.high)
            nearest = round(nearest) if self.whole else nearest
            if end != nearest:
                kind = "a whole number" if self.whole else "a number"
                raise UserError(
                    f"{text!r}: {self.name} is {kind} from {self.low:g} to {self.high:g}, not "
                    f"{end:g}. Did you mean {nearest:g}?"
                )
        if value.low > value.high:
            raise UserError(
                f"{text!r}: the range {value} runs down. Did you mean {Range(*value[::-1])}?"
            )


class Kind(NamedTuple):
    """A function of TensorFlow, what it changes, a seed, and one scalar for each parameter."""

    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]


class Kinds(dict[str, Kind]):
    """A family of operations by name.

    Args:
      noun: what one is called in messages.
    """

    def __init__(self, noun: str = "operation") -> None:
        super().__init__()
        self.noun = noun

    def add(self, *parameters: Parameter) -> Callable[[Callable], Callable]:
        """A decorator: the function becomes an operation of its own name."""

        def added(function: Callable) -> Callable:
            self[function.__name__] = Kind(function, parameters)
            return function

        return added

    def parse(self, text: str, separator: str = ",") -> tuple[Operation, ...]:
        """The operations of a list.

        Args:
          separator: "," or "|", which stands between them outside of parentheses.

        Raises:
          UserError: it can't be read; an unknown operation; too few or too many arguments, or one
            out of range.
        """
        items = re.split(re.escape(separator) + r"(?![^()]*\))", text)
        return tuple(self._operation(item.strip(), separator) for item in items)

    def run(self, tf: Any, operation: Operation, subject: Any, seed: Any) -> Any:
        """The operation on a subject, by a seed (2,) int32, from which its ranges are drawn too."""
        kind = self[operation.name]
        arguments = _drawn(tf, kind.parameters, operation.args, fold(tf, seed, 0))
        return kind.function(tf, subject, fold(tf, seed, 1), *arguments)

    def run_one(self, tf: Any, operations: Sequence[Operation], subject: Any, seed: Any) -> Any:
        """One of the operations, each as likely."""
        choose, own = fold(tf, seed, 0), fold(tf, seed, 1)
        number = tf.random.stateless_uniform([], choose, maxval=len(operations), dtype=tf.int32)
        branches = [functools.partial(self.run, tf, each, subject, own) for each in operations]
        return tf.switch_case(number, branches)

    def _operation(self, text: str, separator: str) -> Operation:
        found = _ITEM.fullmatch(text)
        if not found:
            raise UserError(
                f"{text!r} is no {self.noun}: write NAME or NAME(NUMBER,...), of which a number "
                f"may be a range a..b, with {separator!r} in between."
            )
        name, arguments = found[1], (found[2] or "").strip()
        if name not in self:
            raise UserError(f"unknown {self.noun} {name!r}.{did_you_mean(name, self)}")
        given = [_range(a, text) for a in arguments.split(",")] if arguments else []
        return Operation(name, self._filled(name, given, text))

    def _filled(self, name: str, given: list[Range], text: str) -> tuple[Range, ...]:
        parameters = self[name].parameters
        values = given + [p.default for p in parameters[len(given) :]]
        if len(given) > len(parameters) or None in values:
            raise UserError(f"{text!r}: {name} takes {_told(parameters)}, not {len(given)}.")
        for parameter, value in zip(parameters, values, strict=True):
            parameter.check(value, text)
        return tuple(values)


def _range(text: str, item: str) -> Range:
    found = _ARGUMENT.fullmatch(text)
    if not found:
        raise UserError(f"{item!r}: {text.strip()!r} is no number, nor a range a..b of two.")
    low = float(found[1])
    return Range(low, low if found[2] is None else float(found[2]))


def _told(parameters: tuple[Parameter, ...]) -> str:
    """ "2 arguments (n, share=0.5)"."""
    names = [p.name + ("" if p.default is None else f"={p.default}") for p in parameters]
    count = f"{len(names)} argument{'s' * (len(names) != 1)}"
    return f"{count} ({', '.join(names)})" if names else "no arguments"


def fold(tf: Any, seed: Any, number: int) -> Any:
    """A seed (2,) int32 of its own for each number."""
    return tf.random.experimental.stateless_fold_in(seed, number)


def _drawn(tf: Any, parameters: Sequence[Parameter], values: Sequence[Range], seed: Any) -> Any:
    """A float32 scalar from each range."""
    if all(low == high for low, high in values):
        return [tf.constant(low, tf.float32) for low, _ in values]
    shares = tf.unstack(tf.random.stateless_uniform([len(values)], seed))
    return [at(tf, *each) for each in zip(parameters, values, shares, strict=True)]


def at(tf: Any, parameter: Parameter, value: Range, share: Any) -> Any:
    """The number at a share in [0, 1) of a range."""
    low, high = value
    if parameter.whole:
        return tf.minimum(tf.floor(low + share * (high - low + 1)), high)
    return low + share * (high - low)
