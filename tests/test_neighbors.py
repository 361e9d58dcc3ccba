"""Nearest neighbours, realism and copying: against scikit-learn and the definitions."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from aigc_jax.errors import UserError
from aigc_jax.metrics import neighbors


def points(n, dim=12, seed=0, offset=30.0):
    return np.random.default_rng(seed).normal(offset, 1, (n, dim)).astype(np.float32)


@pytest.mark.parametrize("same", [False, True])
def test_nearest_is_scikit_learns(same, monkeypatch):
    monkeypatch.setattr(neighbors, "_ROWS", 13)
    monkeypatch.setattr(neighbors, "_COLUMNS", 17)
    among = points(61)
    x = among if same else points(40, seed=1)
    distances, index = neighbors.nearest(x, among, 5, same=same)
    theirs = NearestNeighbors(n_neighbors=6 if same else 5).fit(among.astype(float))
    expected, rows = theirs.kneighbors(x.astype(float))
    np.testing.assert_allclose(distances, expected[:, same:], rtol=1e-5)
    np.testing.assert_array_equal(index, rows[:, same:])


def test_copies_are_at_no_distance():
    """Where products would leave rounding."""
    among = points(50, dim=512, offset=1000)
    distances, index = neighbors.nearest(among[::2], among)
    np.testing.assert_array_equal(index[:, 0], np.arange(0, 50, 2))
    assert distances.max() == 0


def test_realism_is_its_equation():
    real, fake = points(60), points(20, seed=1) + np.linspace(0, 3, 20, dtype="f4")[:, None]
    apart = np.linalg.norm(real[:, None] - real[None], axis=-1)
    radii = np.sort(apart, 1)[:, 3]
    kept = radii <= np.median(radii)
    to_real = np.linalg.norm(fake[:, None] - real[None, kept], axis=-1)
    expected = (radii[None, kept] / to_real).max(1)
    np.testing.assert_allclose(neighbors.realism(fake, real, 3), expected, rtol=1e-4)
    assert expected[0] > expected[-1]


def test_closeness_is_in_the_images_own_terms():
    train = np.array([[0, 0], [4, 0], [100, 0], [110, 0]], np.float32)
    fake = np.array([[1, 0], [103, 0], [110, 0]], np.float32)
    quotients, index = neighbors.closeness(fake, train)
    np.testing.assert_allclose(quotients, [1 / 4, 3 / 10, 0], atol=1e-6)
    np.testing.assert_array_equal(index, [0, 2, 3])


def test_copies_of_images_that_are_there_twice_are_close():
    train = np.concatenate([points(40, seed=5), points(40, seed=5), points(40, seed=6)])
    fake = train[:20] + 1e-3 * points(20, seed=7, offset=0)
    assert neighbors.closeness(fake, train)[0].max() < 0.1
    assert neighbors.closeness(points(20, seed=8), train)[0].min() > 0.4
    assert neighbors.own_distances(np.ones((3, 2), np.float32)).min() > 0


def test_copying_tells_copies_from_fresh_draws():
    train, held_out = points(400), points(300, seed=1)
    fresh = neighbors.copying(points(300, seed=2), train, held_out)
    assert abs(fresh.value - 0.5) < 0.07 and abs(fresh.z) < 3
    near = neighbors.copying(train[:300] + 0.3 * points(300, seed=3, offset=0), train, held_out)
    assert near.value > 0.95 and near.z > 15
    far = neighbors.copying(points(300, seed=4) + 1, train, held_out)
    assert far.value < 0.3
    # The share of pairs, by brute force.
    x, y = (neighbors.nearest(z, train)[0][:, 0] for z in (points(300, seed=2), held_out))
    np.testing.assert_allclose(fresh.value, (x[:, None] < y[None]).mean(), atol=1e-6)


def test_too_few():
    with pytest.raises(UserError, match="3 images have no 3-th neighbours"):
        neighbors.nearest(points(3), points(3), 3, same=True)
