"""Captions of shapes: true ones against the scenes' geometry in plain Python, wrong ones false."""

import itertools
import re

import numpy as np
import pytest

from aigc_jax.data import shapes
from aigc_jax.data.shapes_captions import asked, captions, wrong_captions
from aigc_jax.data.shapes_scenes import SPLITS, Source
from aigc_jax.errors import UserError

ROWS = np.arange(2000)
SOURCES = [
    Source(split, most, textured)
    for split, most, textured in [
        ("train", 1, False), ("train", 2, False), ("train", 3, True), ("test", 3, False),
        ("novel", 2, True), ("novel", 3, False), ("all", 2, False),
    ]
]  # fmt: skip


def is_so(relation, a, b):
    """Whether object a, of the field `scene`, is clearly above (0) ... object b."""
    right, down = b[5] - a[5], b[6] - a[6]
    clear = [down - abs(right), -down - abs(right), right - abs(down), -right - abs(down)]
    return clear[relation] >= shapes.MARGIN - 1e-6


def true_by_hand(told, scene, background):
    """As `shapes.holds` with the margin."""
    if told[15] not in (-1, background):
        return False
    objects = [o for o in scene if o[0]]
    named = [told[i : i + 5] for i in range(0, 15, 5) if told[i] >= 0]
    return any(
        all(said in (-1, known) for t, o in zip(named, order, strict=True)
            for said, known in zip(t[:4], o[1:5], strict=True))
        and all(t[4] < 0 or is_so(t[4], order[k], order[k + 1]) for k, t in enumerate(named))
        for order in itertools.permutations(objects, len(named))
    )  # fmt: skip


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_captions_are_true_and_say_what_is_asked(source):
    scenes, told = source.scenes(ROWS), asked(source, ROWS)
    texts = captions(source, ROWS)
    for k in ROWS:
        assert true_by_hand(told[k], scenes.field[k], scenes.background[k]), texts[k]
        np.testing.assert_array_equal(shapes.describe(texts[k]), told[k], texts[k])
    shown = scenes.present.sum(axis=1)
    np.testing.assert_array_equal((told[:, 0:15:5] >= 0).sum(axis=1), shown)
    np.testing.assert_array_equal((told[:, 1:15:5] >= 0).sum(axis=1), shown)
    assert (told[:, 3:15:5] >= 0).any() == source.textured
    assert shapes.holds(told, scenes.field, scenes.background, shapes.MARGIN - 1e-6).all()


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_wrong_captions_are_false(source):
    scenes, right = source.scenes(ROWS), captions(source, ROWS)
    wrong = wrong_captions(source, ROWS)
    told = np.stack([shapes.describe(text) for text in wrong])
    assert not shapes.holds(told, scenes.field, scenes.background, -shapes.MARGIN).any()
    assert not any(true_by_hand(told[k], scenes.field[k], scenes.background[k]) for k in ROWS[:500])
    near = (told != asked(source, ROWS)).sum(axis=1) <= 2  # one thing changed, or two exchanged
    assert 0.4 < near.mean() < 0.75
    same_form = [len(a.split()) == len(b.split()) for a, b in zip(right, wrong, strict=True)]
    assert np.mean(np.array(same_form)[near]) > 0.75


def test_held_out_pairs_are_not_given_away():
    """Nor two equal objects: neither kind of caption may be known by its words alone."""

    def objects(told):
        return [(int(t[i]), int(t[i + 1])) for t in told for i in range(0, 15, 5) if t[i] >= 0]

    for source in SOURCES:
        told = [shapes.describe(text) for text in wrong_captions(source, ROWS)]
        assert bool(shapes.HELD_OUT & {*objects(told)}) == (source.split in ("novel", "all"))
        assert all(len({*objects([t])}) == len(objects([t])) for t in told)


def test_the_same_again_and_in_any_batch():
    source = SOURCES[2]
    for make in (captions, wrong_captions, asked):
        np.testing.assert_array_equal(make(source, ROWS[:64])[5:9], make(source, ROWS[5:9]))
    last = np.array([SPLITS["train"] - 1])
    assert shapes.describe(captions(source, last)[0])[0] >= 0


def test_words_are_all_words():
    texts = np.concatenate([f(s, ROWS) for s in SOURCES for f in (captions, wrong_captions)])
    used = {word for text in texts for word in text.replace(",", "").split()}
    assert used == shapes.words()
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]", text) for text in texts)


NOT = [-1] * 5


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("a large red circle above a small blue square",
         [0, 0, 1, -1, 0, 1, 5, 0, -1, -1, *NOT, -1]),
        ("A big red disc over a tiny blue square.", [0, 0, 1, -1, 0, 1, 5, 0, -1, -1, *NOT, -1]),
        ("above a small blue square is a red circle on white",
         [1, 5, 0, -1, 1, 0, 0, -1, -1, -1, *NOT, 2]),
        ("there is a green star with a pink ring to the left of it",
         [5, 3, -1, -1, 3, 4, 7, -1, -1, -1, *NOT, -1]),
        ("on a gray background, a picture of a striped violet cross",
         [3, 6, -1, 1, -1, *NOT, *NOT, 1]),
        ("an orange ring, a plain cyan star and a yellow triangle",
         [4, 1, -1, -1, -1, 5, 4, -1, 0, -1, 2, 2, -1, -1, -1, -1]),
        ("red circle right of blue square, which is below green star",
         [0, 0, -1, -1, 3, 1, 5, -1, -1, 1, 5, 3, -1, -1, -1, -1]),
    ],
)  # fmt: skip
def test_described_by_hand(text, truth):
    found = shapes.describe(text)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, truth)


def test_the_sentence_of_the_issue_can_be_drawn():
    """The form with a size for both objects and a relation between them."""
    texts = captions(Source("train", 2, False), np.arange(20_000))
    form = r"an? (large|small) \w+ \w+ (above|below) an? (large|small) \w+ \w+"
    assert sum(bool(re.fullmatch(form, text)) for text in texts) > 5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a large red elephant", "do not have the word 'elephant' of 'a large red elephant'"),
        ("a rde circle", "'rde' of 'a rde circle'. Did you mean 'red'?"),
        ("a red circle above", "cannot read the caption 'a red circle above': say it like"),
        ("", "cannot read the caption ''"),
        ("a red circle, a blue square, a pink star and a green ring", "of at most 3 objects"),
        ("circle red", "cannot read the caption 'circle red'"),
    ],
)
def test_what_no_caption_says(text, line):
    with pytest.raises(UserError) as error:
        shapes.describe(text)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_holds_of_many_captions_and_scenes():
    source = SOURCES[1]
    told, scenes = asked(source, ROWS[:40]), source.scenes(ROWS[:30])
    grid = shapes.holds(told[None], scenes.field[:, None], scenes.background[:, None])
    assert grid.shape == (30, 40) and grid[np.arange(30), np.arange(30)].all()
    assert grid.mean() < 0.2
    assert (shapes.holds(told[None], scenes.field[:, None]) >= grid).all()
