"""The sentences that are said of shapes: from numbers to words and back; see `shapes`."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aigc_jax.data.shapes_scenes import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from aigc_jax.errors import UserError, did_you_mean

_SYNONYMS = {
    "circle": ("circle", "disc"), "cyan": ("cyan", "turquoise"), "purple": ("purple", "violet"),
    "small": ("small", "little", "tiny"), "large": ("large", "big", "huge"),
    "dotted": ("dotted", "spotted"), "grey": ("grey", "gray"),
    "above": ("above", "over"), "below": ("below", "under"),
    "left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
}  # fmt: skip
_OPENERS = ("", "", "there is ", "a picture of ", "an image of ")
_GROUNDS = ("{} on a {} background", "{} on {}", "{} against a {} background")
_GROUND_FIRST = "on a {1} background, {0}"
# {0}, {1}, {2}: the objects; {r0}: how the first lies to the second, {i0}: the second to the first.
_FORMS = (
    "{0}",
    "{0} and {1}",
    "{0} {r0} {1}",
    "{0} {r0} {1}",  # the plainest is said most
    "{0} is {r0} {1}",
    "{0} with {1} {i0} it",
    "{0} and {i0} it {1}",
    "{i0} {0} is {1}",
    "{0}, {1} and {2}",
    "{0} {r0} {1}, and {2}",
    "{0}, and {1} {r1} {2}",
    "{0} {r0} {1}, which is {r1} {2}",
)


def phrases(told: np.ndarray, style: np.ndarray) -> np.ndarray:
    """What is asked (B, 16), and choices of words (B, 20) in [0, 1) -> (B,) object, sentences."""
    found = np.empty(len(told), object)
    found[:] = [_phrase(t, iter(s)) for t, s in zip(told.tolist(), style.tolist(), strict=True)]
    return found


def _phrase(told: Sequence[int], style: Iterator[float]) -> str:
    """A sentence that says all of it; what is free in it is chosen by numbers in [0, 1)."""
    pick = lambda options: options[int(next(style) * len(options))]  # noqa: E731
    say = lambda names, value: pick(_SYNONYMS.get(names[value], (names[value],)))  # noqa: E731
    objects = [told[i : i + 5] for i in range(0, 15, 5) if told[i] >= 0]
    parts = {}
    for k, (*_, relation) in enumerate(objects):
        if relation >= 0:
            parts |= {f"r{k}": say(RELATIONS, relation), f"i{k}": say(RELATIONS, relation ^ 1)}
    form = pick(_fitting(len(objects), tuple(parts)))
    nouns = [_noun(told, say) for told in objects]
    text = (pick(_OPENERS) if _opens(form) else "") + form.format(*nouns, **parts)
    if told[-1] < 0:
        return text
    return pick((*_GROUNDS, _GROUND_FIRST)).format(text, say(BACKGROUNDS, told[-1]))


def _fitting(count: int, relations: tuple[str, ...]) -> list[str]:
    """The forms that name so many objects, and these relations."""
    told = {relation[1] for relation in relations}
    return [f for f in _FORMS
            if f.count("{0}") + f.count("{1}") + f.count("{2}") == count
            and {m[1] for m in re.findall(r"[ri]\d", f)} == told]  # fmt: skip


def _opens(form: str) -> bool:
    """Whether "there is" may come before it."""
    return form.startswith("{0}") and not form.startswith("{0} is")


def _noun(told: Sequence[int], say: Callable[[Sequence[str], int], str]) -> str:
    shape, colour, size, texture, _ = told
    words = [say(names, value) for names, value in
             ((SIZES, size), (TEXTURES, texture), (COLOURS, colour), (SHAPES, shape))
             if value >= 0]  # fmt: skip
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def describe(text: str) -> np.ndarray:
    """What a caption says, (16,) int32: the inverse of `captions`, see `shapes`.

    Raises:
      UserError: words or a form that no caption has.
    """
    plain = " ".join(text.lower().strip().rstrip(".").replace(",", " , ").split())
    plain = plain.replace(" ,", ",")
    _check_words(text, plain)
    for pattern, form in _PATTERNS:
        if match := pattern.fullmatch(plain):
            return _read(form, match.groupdict())
    raise UserError(
        f"cannot read the caption {text!r}: say it like 'a large red circle above a small blue "
        f"square', of at most {OBJECTS} objects"
    )


def _check_words(text: str, plain: str) -> None:
    for word in plain.replace(",", "").split():
        if word not in words():
            raise UserError(
                f"captions of shapes do not have the word {word!r} of {text!r}."
                f"{did_you_mean(word, words())}"
            )


def words() -> frozenset[str]:
    """All words that captions may hold."""
    return _WORDS


def _meanings(names: Sequence[str]) -> dict[str, int]:
    """Every word for one of the names -> its number."""
    return {word: i for i, name in enumerate(names) for word in _SYNONYMS.get(name, (name,))}


_MEANINGS = {
    name: _meanings(names)
    for name, names in {
        "shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES,
        "relation": RELATIONS, "background": BACKGROUNDS,
    }.items()
}  # fmt: skip


def _any(name: str, group: str) -> str:
    return f"(?P<{group}>{'|'.join(_MEANINGS[name])})"


def _noun_pattern(k: int) -> str:
    optional = "".join(f"(?:{_any(name, f'{name}{k}')} )?" for name in ("size", "texture"))
    return f"(?:an? )?{optional}{_any('colour', f'colour{k}')} {_any('shape', f'shape{k}')}"


def _pattern(form: str, ground: str) -> re.Pattern[str]:
    nouns = [_noun_pattern(k) for k in range(OBJECTS)]
    relations = {f"{way}{k}": _any("relation", f"{way}{k}") for way in "ri" for k in range(2)}
    text = form.format(*nouns, **relations)
    if _opens(form):
        text = f"(?:{'|'.join(_OPENERS)})" + text
    return re.compile(ground.format(text, _any("background", "background")))


_PATTERNS = [
    (_pattern(form, ground), form)
    for form in dict.fromkeys(_FORMS)
    for ground in ("{}", *_GROUNDS, _GROUND_FIRST)
]
_WORDS = frozenset(
    word
    for text in (
        *_FORMS,
        *_OPENERS,
        *_GROUNDS,
        _GROUND_FIRST,
        "an",
        *itertools.chain(*_MEANINGS.values()),
    )
    for word in re.sub(r"\{\w*\}|,", " ", text).split()
)


def _read(form: str, groups: dict[str, str | None]) -> np.ndarray:
    """(16,) int32, from the words by the names that `_pattern` gave them."""
    told = np.full(16, -1, np.int32)
    for name, word in groups.items():
        if word is None:
            continue
        if name == "background":
            told[-1] = _MEANINGS[name][word]
        elif name[0] in "ri" and len(name) == 2:
            told[5 * int(name[1]) + 4] = _MEANINGS["relation"][word] ^ (name[0] == "i")
        else:
            place = ("shape", "colour", "size", "texture").index(name[:-1])
            told[5 * int(name[-1]) + place] = _MEANINGS[name[:-1]][word]
    return told
