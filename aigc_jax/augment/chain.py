"""A list of augmentations, and the matrices it amounts to; for JAX and TensorFlow alike."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from aigc_jax.augment.kinds import KINDS, LUMA, Rows
from aigc_jax.errors import UserError
from aigc_jax.operations import Operation, at

_PLACES_AND_COLOURS = {"place": ["places"], "colour": ["colours"], "both": ["places", "colours"]}


@dataclasses.dataclass(frozen=True)
class Step:
    """What is done at once to each image.

    Either operations that are matrices, `places` before `colours`, or one of another kind. Each
    stands with the place of its numbers among those of the chain.
    """

    places: tuple[tuple[int, Operation], ...] = ()
    colours: tuple[tuple[int, Operation], ...] = ()
    pixels: tuple[int, Operation] | None = None


@dataclasses.dataclass(frozen=True)
class Chain:
    """Augmentations, in the order in which they are applied.

    Attributes:
      steps: the same in as few as there may be. Matrices of places and of colours change places:
        a mean of colours becomes the same mean of what they become.
      draws: how many numbers in [0, 1) each image draws.
      mixes: of which each image draws one afterwards, see `augment.mixing`.
    """

    steps: tuple[Step, ...]
    draws: int
    mixes: tuple[Operation, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether anything is elsewhere afterwards."""
        moving = lambda step: step.pixels and step.pixels[1].name == "elastic"  # noqa: E731
        return any(step.places or moving(step) for step in self.steps)


@functools.lru_cache
def parse(text: str, *, mixing: bool = False) -> Chain:
    """The chain of a list, "rotate(15),flip"; "": nothing.

    Args:
      mixing: whether images may be mixed with others.

    Raises:
      UserError: an unknown one, too few or too many arguments, or one out of range.
    """
    operations = KINDS.parse(text) if text.strip() else ()
    steps, mixes, first = [Step()], [], 0
    for operation in itertools.chain(*map(_each, operations)):
        stage, entry = KINDS[operation.name].stage, (first, operation)
        if stage == "batch":
            mixes.append(operation)
        elif stage == "pixels":
            steps += [Step(pixels=entry), Step()]
        for name in _PLACES_AND_COLOURS.get(stage, ()):
            steps[-1] = dataclasses.replace(steps[-1], **{name: (*getattr(steps[-1], name), entry)})
        first += len(operation.args) + KINDS[operation.name].draws
    if mixes and not mixing:
        raise UserError(
            f"{mixes[0].name!r} mixes the images of a batch and their labels: it is for "
            "classifiers alone, in config.augment."
        )
    return Chain(tuple(step for step in steps if step != Step()), first, tuple(mixes))


def _each(operation: Operation) -> list[Operation]:
    """RandAugment as the several that it is."""
    if operation.name != "randaugment":
        return [operation]
    number, _ = operation.args
    if number.low != number.high:
        raise UserError(f"'{operation}': n can't be a range. Did you mean {number.high:g}?")
    return [operation] * int(number.high)


def numbers(xp: Any, entry: tuple[int, Operation], u: Any) -> tuple[list[Any], list[Any]]:
    """The arguments (B,) of an operation, drawn, and the numbers that are its own.

    Args:
      u: (B, draws), of the chain.
    """
    first, operation = entry
    kind = KINDS[operation.name]
    columns = [u[:, first + i] for i in range(len(operation.args) + kind.draws)]
    ends = zip(kind.parameters, operation.args, columns, strict=False)
    args = [at(xp, *each) for each in ends]
    return args, columns[len(args) :]


def places(xp: Any, step: Step, u: Any, shape: tuple[int, int]) -> Any:
    """(B, 3, 3): from places in the result, (x, y, 1), to places in the image; see `kinds.Kind`.

    Args:
      u: (B, draws) in [0, 1).
      shape: (H, W) of the images.
    """
    return functools.reduce(
        lambda total, each: total @ each,
        (matrix(xp, rows, u) for rows in _rows(xp, step.places, u, shape=shape)),
    )


def colours(xp: Any, step: Step, u: Any, mean: Any) -> Any:
    """(B, 3, 4): from colours in [-1, 1] and 1 to colours.

    Args:
      mean: (B, 3) of each image, in [-1, 1].
    """
    total, mean = None, (mean + 1) / 2
    for entry in step.colours:
        level = sum(weight * mean[:, i] for i, weight in enumerate(LUMA))
        [rows] = _rows(xp, [entry], u, mean=level)
        each = matrix(xp, rows, u)
        mean = (each[:, :, :3] @ mean[..., None] + each[:, :, 3:])[..., 0]
        total = each if total is None else _after(xp, total, each)
    # x = (v + 1) / 2 becomes A x + b, so v becomes A v + A 1 + 2 b - 1.
    scale = total[:, :, :3]
    level = scale @ xp.ones_like(scale[:, :, :1]) + 2 * total[:, :, 3:] - 1
    return _beside(xp, scale, level)


def matrix(xp: Any, rows: Rows, u: Any) -> Any:
    """Rows of numbers and arrays (B,) -> (B, rows, columns)."""
    one = xp.ones_like(u[:, :1])[:, 0]
    return xp.stack([xp.stack([x * one for x in row], -1) for row in rows], 1)


def _rows(xp: Any, entries: Sequence[tuple[int, Operation]], u: Any, **more: Any) -> Iterator[Rows]:
    for entry in entries:
        args, own = numbers(xp, entry, u)
        yield KINDS[entry[1].name].function(xp, own, *args, **more)


def _after(xp: Any, first: Any, then: Any) -> Any:
    """`then` of `first`, (B, 3, 4) each."""
    scale = then[:, :, :3] @ first[:, :, :3]
    return _beside(xp, scale, then[:, :, :3] @ first[:, :, 3:] + then[:, :, 3:])


def _beside(xp: Any, scale: Any, level: Any) -> Any:
    columns = [scale[:, :, i] for i in range(3)] + [level[:, :, 0]]
    return xp.stack(columns, -1)
