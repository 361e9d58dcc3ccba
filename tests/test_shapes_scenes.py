"""Scenes of shapes: functions of their rows, with what the splits promise."""

import itertools

import numpy as np
import pytest

from aigc_jax.data import shapes
from aigc_jax.data.shapes_scenes import OBJECTS, SPLITS, Source, uniform

ROWS = np.arange(3000)
FAR = np.concatenate([ROWS[:100], 2**31 - 2 - ROWS[:100]])


def pairs(source, rows=ROWS):
    scenes = source.scenes(rows)
    found = zip(scenes.shape[scenes.present], scenes.colour[scenes.present], strict=True)
    return {(int(shape), int(colour)) for shape, colour in found}


def test_a_scene_is_a_function_of_its_row():
    source = Source("train", 3, True)
    whole = source.scenes(FAR)
    for rows in (FAR[7:8], FAR[::-3]):
        for few, many in zip(source.scenes(rows), whole, strict=True):
            places = [np.flatnonzero(rows[k] == FAR)[0] for k in range(len(rows))]
            np.testing.assert_array_equal(few, many[places])


def test_numbers_are_splitmix64():
    """The generator of Steele et al. 2014, written out for one row."""

    def mix(z):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> shift)) * factor % 2**64
        return z ^ (z >> 31)

    state = mix(mix(12345) ^ mix(1007 + 2**40))
    truth = [(mix((state + k * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for k in range(1, 6)]
    np.testing.assert_array_equal(uniform(np.array([12345]), "test", 7, 5), [truth])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_objects_lie_inside_and_apart(split, most):
    scenes = Source(split, most, False).scenes(ROWS)
    count = scenes.present.sum(axis=1)
    assert {*count} == set(range(1, most + 1))
    assert (np.bincount(count)[1:] / len(ROWS) > 0.9 / most).all()
    low, high = scenes.centre - scenes.radius[..., None], scenes.centre + scenes.radius[..., None]
    assert low[scenes.present].min() > 0.01 and high[scenes.present].max() < 0.99
    for i, j in itertools.combinations(range(OBJECTS), 2):
        both = scenes.present[:, i] & scenes.present[:, j]
        far = np.hypot(*(scenes.centre[:, i] - scenes.centre[:, j]).T)
        assert (far - scenes.radius[:, i] - scenes.radius[:, j])[both].min(initial=1) > 0.0399
        same = (scenes.shape[:, i] == scenes.shape[:, j]) & (
            scenes.colour[:, i] == scenes.colour[:, j]
        )
        assert not (same & both).any()


def test_everything_occurs_evenly():
    scenes = Source("train", 3, True).scenes(ROWS)
    for values, names in (
        (scenes.shape, shapes.SHAPES), (scenes.colour, shapes.COLOURS),
        (scenes.size, shapes.SIZES), (scenes.texture, shapes.TEXTURES),
    ):  # fmt: skip
        share = np.bincount(values[scenes.present]) / scenes.present.sum() * len(names)
        assert len(share) == len(names) and share.min() > 0.8 and share.max() < 1.25
    assert np.bincount(scenes.background).min() > 900
    assert np.abs(scenes.centre[scenes.present].mean(axis=0) - 0.5).max() < 0.01


def test_held_out_pairs_are_seen_in_the_split_novel_alone():
    everything = set(itertools.product(range(6), range(8)))
    assert len(shapes.HELD_OUT) == 8
    assert pairs(Source("train", 3, False)) == everything - shapes.HELD_OUT
    assert pairs(Source("test", 3, False)) == everything - shapes.HELD_OUT
    assert pairs(Source("novel", 3, False)) == everything
    assert pairs(Source("all", 3, False)) == everything
    assert pairs(Source("novel", 1, False)) == shapes.HELD_OUT
    seen = everything - shapes.HELD_OUT
    assert {s for s, _ in seen} == set(range(6)) and {c for _, c in seen} == set(range(8))


def test_every_novel_scene_has_one_held_out_pair():
    scenes = Source("novel", 3, False).scenes(np.arange(SPLITS["novel"]))
    held = np.zeros((6, 8), bool)
    held[tuple(np.array([*shapes.HELD_OUT]).T)] = True
    count = (held[scenes.shape, scenes.colour] & scenes.present).sum(axis=1)
    assert (count == 1).all()


def test_splits_are_other_scenes():
    first, second = (Source(split, 3, False).scenes(ROWS).centre for split in ("train", "test"))
    assert len(np.intersect1d(first[:, 0, 0], second[:, 0, 0])) == 0
    assert len(np.unique(first[:, 0, 0])) == len(ROWS)
