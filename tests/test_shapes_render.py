"""Pictures of shapes against their outlines counted out at 16 x 16 points a pixel."""

import numpy as np
import pytest

from aigc_jax.data import shapes
from aigc_jax.data.shapes_render import labels, outlines, pictures
from aigc_jax.data.shapes_scenes import Source

POINTS = 16


def corners(*angles, radius=1.0):
    """(K, 2) on a circle: degrees clockwise from above."""
    angles = np.radians(angles)
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=-1)


def star():
    inner = np.cos(np.radians(72)) / np.cos(np.radians(36))  # where the lines of a pentagram meet
    points = [corners(36 * k, radius=(1, inner)[k % 2]) for k in range(10)]
    return np.concatenate(points)


def cross(arm=0.32, reach=0.945):
    quarter = np.array([(-arm, -reach), (arm, -reach), (arm, -arm)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


POLYGONS = {
    "square": corners(45, 135, 225, 315),
    "triangle": corners(0, 120, 240),
    "star": star(),
    "cross": cross(),
}


def inside(polygon, points):
    """Whether a line to the right crosses the edges an odd number of times."""
    odd = np.zeros(len(points), bool)
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        spans = (a[1] > points[:, 1]) != (b[1] > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            x = a[0] + (points[:, 1] - a[1]) / (b[1] - a[1]) * (b[0] - a[0])
        odd ^= spans & (points[:, 0] < x)
    return odd


def covers(name, points):
    far = np.hypot(*points.T)
    if name in ("circle", "ring"):
        return (far <= 1) & (far >= (0.5 if name == "ring" else 0))
    return inside(POLYGONS[name], points)


def counted(scenes, row, number, size):
    """The share of each pixel that one object covers, (S, S), and where its points lie."""
    at = (np.arange(size * POINTS) + 0.5) / (size * POINTS)
    points = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2) - scenes.centre[row, number]
    c, s = np.cos(scenes.turn[row, number]), np.sin(scenes.turn[row, number])
    points = points @ np.array([[c, -s], [s, c]]) / scenes.radius[row, number]
    found = covers(shapes.SHAPES[scenes.shape[row, number]], points)
    return found.reshape(size, POINTS, size, POINTS).mean(axis=(1, 3))


def painted(scenes, row, size):
    """The whole picture in floats."""
    ground = shapes.TONES[scenes.background[row]] + scenes.tone[row, 0]
    image = np.broadcast_to(ground, (size, size, 3)).copy()
    for number in np.flatnonzero(scenes.present[row]):
        colour = shapes.PALETTE[1 + scenes.colour[row, number]] + scenes.tone[row, 1 + number]
        share = counted(scenes, row, number, size)[..., None]
        image += share * (colour - ground)
    return np.clip(image, 0, 255)


@pytest.mark.parametrize(("size", "rows"), [(32, 10), (64, 5)])
def test_against_counting_points(size, rows):
    scenes = Source("train", 3, False).scenes(np.arange(6, 6 + rows))
    assert len({*scenes.shape[scenes.present]}) >= (6 if size == 32 else 4)
    truth = np.stack([painted(scenes, row, size) for row in range(rows)])
    off = np.abs(pictures(scenes, size) - np.round(truth))
    assert off.max() < 10 and off.mean() < 0.05
    assert np.ptp(truth, axis=(1, 2, 3)).min() > 100  # there is something to be seen


@pytest.mark.parametrize("field", ["colour", "shape"])
def test_labels_are_where_an_object_covers_half(field):
    scenes = Source("test", 3, True).scenes(np.arange(5))
    values = 1 + getattr(scenes, field)
    found = labels(scenes, 32, values)
    for row in range(5):
        truth, sure = np.zeros((32, 32), int), np.ones((32, 32), bool)
        for number in np.flatnonzero(scenes.present[row]):
            share = counted(scenes, row, number, 32)
            truth[share >= 0.5] = values[row, number]
            sure &= np.abs(share - 0.5) > 0.03
        np.testing.assert_array_equal(found[row][sure], truth[sure])
        assert sure.mean() > 0.98 and truth.any()


def test_the_label_map_is_the_picture_in_plain_colours():
    scenes = Source("novel", 3, False).scenes(np.arange(64))
    image, maps = pictures(scenes, 64), labels(scenes, 64, 1 + scenes.colour)
    palette = np.concatenate([shapes.TONES, shapes.PALETTE[1:]]).astype(int)
    far = np.abs(image[..., None, :].astype(int) - palette).max(axis=-1)
    pure = far.min(axis=-1) <= 9  # no edge
    ground = len(shapes.TONES) - 1
    np.testing.assert_array_equal(np.maximum(far.argmin(axis=-1) - ground, 0)[pure], maps[pure])
    assert pure.mean() > 0.9 and {*np.unique(maps)} == {*range(9)}


def test_textures_are_told_apart_by_how_much_is_dark():
    scenes = Source("train", 1, True).scenes(np.arange(300))
    image, mask = pictures(scenes, 64), labels(scenes, 64, scenes.present) == 1
    colour = shapes.PALETTE[1:][scenes.colour[:, 0]].max(axis=1)
    dark = image.max(axis=-1) < 0.42 * colour[:, None, None]
    share = (dark & mask).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))
    plain, striped, dotted = (share[scenes.texture[:, 0] == texture] for texture in range(3))
    assert plain.max() < 0.02
    assert np.quantile(striped, 0.1) > 0.2 and 0.35 < np.median(striped) < 0.6
    assert np.quantile(dotted, 0.1) > 0.08 and 0.15 < np.median(dotted) < 0.35


def test_outlines_lie_within_and_leave_the_inside_out():
    scenes = Source("train", 3, False).scenes(np.arange(32))
    drawn, filled = outlines(scenes, 64).astype(int), pictures(scenes, 64).astype(int)
    ground = (shapes.TONES[scenes.background] + scenes.tone[:, 0])[:, None, None]
    blank = np.abs(filled - ground).max(axis=-1) <= 1
    assert np.abs(drawn - ground).max(axis=-1)[blank].max() <= 1
    line = np.abs(drawn - ground).max(axis=-1) > 20
    share = line.sum(axis=(1, 2)) / (~blank).sum(axis=(1, 2))
    assert share.min() > 0.2 and share.max() < 0.9 and share.mean() < 0.65
    centre = (scenes.centre[:, 0] * 64).astype(int)
    empty = ~line[np.arange(32), centre[:, 1], centre[:, 0]]
    assert empty.all()
