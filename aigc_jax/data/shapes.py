"""Scenes of shapes, drawn as they are read: `shapes[:N][,textured][/SPLIT]`.

1 to N objects (N is 1, 2 or 3, the default) differ in shape, colour, size and place, and with
`textured` in texture too; nothing is stored, and a scene is a function of its row alone. The split
train never ends (2^31 - 1 scenes); test has 10,000 others of the same kind; novel has 10,000 in
which one object is of a shape and a colour (`HELD_OUT`) that are never together in the other two;
all has every combination alike and never ends: for probes, which must not learn what is rare.
`test[:500]` is the first 500 of a split, as TFDS writes it.

What is known of a scene comes as fields of the source, and of the task that takes them:

==================  ====================  =====================================================
``caption``         () str                true: "a large red circle above a small blue square"
``wrong_caption``   () str                false, in one word or altogether
``asked``           (16,) int32           what the caption says: for each of its objects, in its
                                          order, shape, colour, size, texture and the relation to
                                          the next; then the background. Numbers are places in
                                          `SHAPES`, `COLOURS` ..., -1 is not said or not there
``scene``           (3, 8) float32        of each object: 1, shape, colour, size, texture, x, y,
                                          radius; the last three are shares of the side, x to the
                                          right and y down; an absent one is 0
``background``      () int32              of `BACKGROUNDS`
``segments``        (S, S) uint8          0, or 1 + the colour of the object there
``parts``           (S, S) uint8          0, or 1 + its shape
``objects``         (S, S) uint8          0, or 1 + its number in `scene`
``outline``         (S, S, C) uint8       the scene as coloured outlines
``label``           () int32              the shape, where N is 1
==================  ====================  =====================================================
"""

import functools
import re
from collections.abc import Callable

import numpy as np

from aigc_jax.data.dataset import Dataset, Field, Request, to_channels
from aigc_jax.data.shapes_captions import (
    MARGIN,
    asked,
    captions,
    holds,
    wrong_captions,
)
from aigc_jax.data.shapes_grammar import describe, words
from aigc_jax.data.shapes_render import labels, outlines, pictures
from aigc_jax.data.shapes_scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    OBJECTS,
    PALETTE,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    TONES,
    Scenes,
    Source,
)
from aigc_jax.errors import UserError, did_you_mean

__all__ = [
    "BACKGROUNDS", "COLOURS", "HELD_OUT", "MARGIN", "OBJECTS", "PALETTE", "RELATIONS", "SHAPES",
    "SIZES", "TEXTURES", "TONES", "describe", "holds", "read_shapes", "words",
]  # fmt: skip

_LEAST, _LARGEST = 16, 256  # pixels; below 24 small shapes can hardly be told apart


def read_shapes(request: Request) -> Dataset:
    """The scenes of a split, in colour unless one channel is asked for.

    Raises:
      UserError: another number of objects, split or size than there is, or no scenes.
    """
    source, num_examples = _source(request)
    size = request.image_size
    if not _LEAST <= size <= _LARGEST:
        raise UserError(f"shapes are drawn at {_LEAST} to {_LARGEST} pixels, not {size}")
    channels = request.channels or 3

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return to_channels(pictures(source.scenes(rows), size), channels), rows

    kind = f"{source.most}{',textured' if source.textured else ''}"
    cut = f"[:{num_examples}]" if num_examples < SPLITS[source.split] else ""
    return Dataset(
        name=f"shapes:{kind}/{source.split}{cut}",
        num_examples=num_examples,
        image_size=size,
        channels=channels,
        class_names=SHAPES if source.most == 1 else (),
        read=read,
        fields=_fields(source, size, channels),
        placed=True,
    )


def _source(request: Request) -> tuple[Source, int]:
    """The scenes that are asked for, and how many of them."""
    kind, slash, split = request.place.partition("/")
    split = split if slash else request.split
    split, most = re.fullmatch(r"(.*?)(?:\[:(\d+)\])?", split, re.DOTALL).groups()
    match = re.fullmatch(r"([1-3])?(?:(^|,)(textured))?", kind)
    if not match:
        raise UserError(
            f"cannot read shapes:{request.place}: write shapes:N, N from 1 to {OBJECTS}, with "
            "',textured' and /SPLIT behind it, e.g. shapes:2,textured/test"
        )
    if split not in SPLITS:
        raise UserError(f"shapes has no split {split!r}.{did_you_mean(split, SPLITS)}")
    if most is not None and int(most) < 1:
        raise UserError(f"{split}[:{most}] of shapes is empty: take at least 1 scene")
    source = Source(split, int(match[1] or OBJECTS), match[3] is not None)
    return source, min(int(most or SPLITS[split]), SPLITS[split])


def _fields(source: Source, size: int, channels: int) -> dict[str, Field]:
    def of(make: Callable[[Scenes], np.ndarray], shape: tuple[int, ...], dtype: type) -> Field:
        return Field(lambda rows: make(source.scenes(rows)), shape, dtype)

    def painted(values: Callable[[Scenes], np.ndarray]) -> Field:
        return of(lambda scenes: labels(scenes, size, 1 + values(scenes)), (size, size), np.uint8)

    label = of(lambda scenes: scenes.shape[:, 0].astype(np.int32), (), np.int32)
    return {
        "caption": Field(functools.partial(captions, source), (), object),
        "wrong_caption": Field(functools.partial(wrong_captions, source), (), object),
        "asked": Field(functools.partial(asked, source), (16,), np.int32),
        "scene": of(lambda scenes: scenes.field, (OBJECTS, 8), np.float32),
        "background": of(lambda scenes: scenes.background.astype(np.int32), (), np.int32),
        "segments": painted(lambda scenes: scenes.colour),
        "parts": painted(lambda scenes: scenes.shape),
        "objects": painted(lambda scenes: np.arange(OBJECTS) + 0 * scenes.shape),
        "outline": of(
            lambda scenes: to_channels(outlines(scenes, size), channels),
            (size, size, channels), np.uint8,
        ),
        **({"label": label} if source.most == 1 else {}),
    }  # fmt: skip
