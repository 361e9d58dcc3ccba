"""Masks: what is in them against their definitions, and strokes against a painter's of Pillow."""

import functools
import math

import numpy as np
import pytest
import scipy.stats
from PIL import Image, ImageDraw
from scipy import ndimage

from aigc_jax.data import masks, tensorflow
from aigc_jax.errors import UserError

KINDS = sorted(masks.KINDS)


@functools.cache
def holes(text, count=200, size=(64, 64)):
    """(count, H, W) bool."""
    return masks.arrays(text, [[i, 3] for i in range(count)], size)[..., 0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_stream(kind):
    tf = tensorflow()
    seeds = tf.constant([[3, 4], [5, 6], [3, 4]])
    for size, shape in ((32, (32, 32)), ((20, 31), (20, 31))):
        drawn = tf.data.Dataset.from_tensors(seeds).map(lambda s, n=size: masks.draw(kind, s, n))
        assert drawn.element_spec.shape[1:] == (*shape, 1)
        (found,) = drawn.as_numpy_iterator()
        assert found.shape == (3, *shape, 1) and found.dtype == np.float32
        assert set(np.unique(found)) == {0, 1}
        np.testing.assert_array_equal(found[0], found[2])
        np.testing.assert_array_equal(masks.arrays(kind, seeds[1:2], shape)[0], found[1])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "centre"])
def test_seeds_draw_different_ones(kind):
    found = {hole.tobytes() for hole in holes(kind)}
    assert len(found) >= (4 if kind == "half" else 190)


@pytest.mark.parametrize("text", [*KINDS, "random(0)", "random(1)", "boxes(40..50)", "strokes(60)"])
@pytest.mark.parametrize("size", [(1, 2), (3, 2), (8, 8)])
def test_never_all_hole_nor_no_hole(text, size):
    found = holes(text, 50, size)
    assert found.any((1, 2)).all() and not found.all((1, 2)).any()


def test_centre():
    truth = np.zeros((64, 80), bool)
    truth[16:48, 20:60] = True
    np.testing.assert_array_equal(holes("centre", 1, (64, 80))[0], truth)
    truth = np.zeros((10, 10), bool)
    truth[3:6, 3:6] = True
    np.testing.assert_array_equal(holes("centre(0.3)", 1, (10, 10))[0], truth)


def test_a_box_is_as_large_as_published():
    low, high = [], []
    for hole in holes("boxes(1)", 300, (256, 256)):
        y, x = np.nonzero(hole)
        low.append((y.min(), x.min()))
        high.append((y.max() + 1, x.max() + 1))
        assert hole.sum() == np.prod(np.subtract(high[-1], low[-1]))
    sides = np.subtract(high, low)
    assert np.min(low) >= 10 and np.max(high) <= 246
    assert scipy.stats.kstest(sides.ravel(), "uniform", (30, 120)).pvalue > 0.01
    places = (np.array(low) - 10) / (236 - sides)
    assert scipy.stats.kstest(places.ravel(), "uniform").pvalue > 0.01


def boxed(rng):
    """One to four of the published boxes, by numpy."""
    hole = np.zeros((256, 256), bool)
    for _ in range(rng.integers(1, 5)):
        height, width = rng.integers(30, 151, 2)
        y, x = rng.integers(10, [247 - height, 247 - width])
        hole[y : y + height, x : x + width] = True
    return hole


def test_boxes_cover_as_much_as_published_ones():
    rng = np.random.default_rng(0)
    truth = [boxed(rng).mean() for _ in range(400)]
    found = holes("boxes", 400, (256, 256)).mean((1, 2))
    assert scipy.stats.ks_2samp(found, truth).pvalue > 0.01
    assert found.mean() == pytest.approx(np.mean(truth), rel=0.08)


def test_halves():
    sides = np.zeros((4, 64, 64), bool)
    sides[0, :32] = sides[1, 32:] = sides[2, :, :32] = sides[3, :, 32:] = True
    found = [(hole == sides).all((1, 2)).argmax() for hole in holes("half") if hole.sum() == 2048]
    assert len(found) == 200
    assert scipy.stats.chisquare(np.bincount(found)).pvalue > 0.01
    assert holes("half(0.25)").mean() == 0.25


def test_single_pixels():
    found = holes("random(0.3)")
    assert found.mean() == pytest.approx(0.3, abs=0.002)
    assert abs(np.corrcoef(found[:, 1:].ravel(), found[:, :-1].ravel())[0, 1]) < 0.01


def test_letters_are_pillows():
    height = 120 / 256  # twice the size of the atlas
    atlas = np.stack([np.kron(glyph, np.ones((2, 2), bool)) for glyph in masks._atlas()])
    assert atlas.any((1, 2)).all() and len({glyph.tobytes() for glyph in atlas}) == 62
    whole = 0
    for hole in holes(f"text({height})", 20, (256, 256)):
        places = [(y, x) for y in range(120) for x in range(72)]
        ink = hole[: 120 + 120, :144]
        matches = [(y, x) for y, x in places if not _cut(ink, y, x)]
        whole += any((ink[y : y + 120, x : x + 72] == atlas).all((1, 2)).any() for y, x in matches)
    assert whole >= 12  # a sixth are blanks, and rounding may move a row


def _cut(ink, y, x):
    """Whether the edge of a cell goes through a letter."""
    return (
        ink[y, x : x + 72].any()
        or ink[y : y + 120, x].any()
        or not ink[y : y + 120, x : x + 72].any()
    )


def test_text_covers_as_much_as_its_letters():
    ink = masks._atlas().mean()
    assert holes("text(0.3)", 100, (256, 256)).mean() == pytest.approx(5 / 6 * ink, rel=0.08)


def painted(rng, size):
    """DeepFillv2's strokes, by Pillow, one mask."""
    image = Image.new("1", (size, size))
    draw, diagonal, scale = ImageDraw.Draw(image), size * math.sqrt(2), size / 256
    for _ in range(rng.integers(1, 4)):
        low, high = 2 * np.pi / 5 + np.array([-1, 1]) * rng.uniform(0, 2 * np.pi / 15, 2)
        width, place = scale * rng.uniform(12, 40), rng.uniform(0, size, 2)
        places = [place]
        for step in range(rng.integers(4, 12)):
            angle = rng.uniform(low, high) * (-1 if step % 2 == 0 else 1)
            length = np.clip(rng.normal(diagonal / 8, diagonal / 16), 0, diagonal / 4)
            place = np.clip(place + length * np.array([np.cos(angle), np.sin(angle)]), 0, size)
            places.append(place)
        draw.line([tuple(p) for p in places], 1, round(width))
        for x, y in places:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 1)
    return np.asarray(image)


def test_strokes_cover_as_much_as_painted_ones():
    rng = np.random.default_rng(0)
    truth = np.array([painted(rng, 128).mean() for _ in range(400)])
    found = holes("strokes", 400, (128, 128)).mean((1, 2))
    assert scipy.stats.ks_2samp(found, truth).pvalue > 0.01
    assert found.mean() == pytest.approx(truth.mean(), rel=0.08)


def test_strokes_are_of_a_round_brush():
    y, x = np.mgrid[-5:6, -5:6]
    disc = y**2 + x**2 <= 25  # the thinnest brush has a radius of 6
    thickest = []
    for hole in holes("strokes(1)", 100, (256, 256)):
        opened = ndimage.binary_opening(np.pad(hole, 6, "edge"), disc)[6:-6, 6:-6]
        assert (hole & ~opened).sum() <= 0.03 * hole.sum()  # what rounding to pixels costs
        assert ndimage.label(hole, np.ones((3, 3)))[1] == 1
        thickest.append(ndimage.distance_transform_edt(hole).max())
    assert 6 <= np.min(thickest) < 9


def test_at_another_size_it_is_the_same_drawing():
    for kind in ("strokes", "boxes", "text(.5)"):
        small, large = (holes(kind, 20, (n, n)) for n in (64, 256))
        assert (small == large[:, 2::4, 2::4]).mean() > 0.97


def test_one_kind_an_image():
    count = (holes("centre|half", 1000, (16, 16)).sum((1, 2)) == 64).sum()
    assert scipy.stats.binomtest(count, 1000, 0.5).pvalue > 0.01


def test_the_page_names_them_all():
    for name, kind in masks.KINDS.items():
        (parameter,) = kind.parameters
        assert f"\n{name}({parameter.name}) " in masks.__doc__
        assert f"({parameter.default})" in masks.__doc__


def test_what_is_refused():
    with pytest.raises(UserError, match=r"^unknown mask 'stroke'. Did you mean 'strokes'\?$"):
        masks.parse("stroke|boxes")
    with pytest.raises(UserError, match=r"with '\|' in between"):
        masks.parse("strokes,boxes")
    with pytest.raises(UserError, match=r"^an image of 1x1 pixels has no room for a mask.$"):
        masks.draw("half", [[1, 2]], 1)
