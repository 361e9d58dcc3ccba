"""The kernel Inception distance against torch-fidelity's and brute force in float64."""

import importlib

import inception_random
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.metrics.kid import kid

RNG = np.random.default_rng(0)
REAL = np.abs(RNG.normal(size=(330, 64)) + 0.3).astype(np.float32)
FAKE = np.abs(RNG.normal(size=(290, 64)) + 0.35).astype(np.float32)


@pytest.fixture(scope="module")
def torch_kid():
    torch = pytest.importorskip("torch")
    inception_random.allow_torchvision()
    pytest.importorskip("torch_fidelity")
    metric = importlib.import_module("torch_fidelity.metric_kid").kid_features_to_metric

    def torch_kid(fake, real, subsets, size):
        options = {"kid_subsets": subsets, "kid_subset_size": size, "verbose": False}
        return tuple(metric(torch.tensor(fake), torch.tensor(real), **options).values())

    return torch_kid


def kernels(x, y):
    return (x.astype(np.float64) @ y.T.astype(np.float64) / x.shape[1] + 1) ** 3


def unbiased(x, y):
    n, m = len(x), len(y)
    own = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in map(kernels, (x, y), (x, y))]
    return sum(own) - 2 * kernels(x, y).sum() / (n * m)


@pytest.mark.parametrize("subsets, size", [(100, 100), (7, 290)])
def test_torch_fidelitys_number(subsets, size, torch_kid):
    """The generated images are its input 1: its draws come first."""
    found = kid(REAL, FAKE, subsets, size)
    np.testing.assert_allclose(found[:2], torch_kid(FAKE, REAL, subsets, size), rtol=0, atol=1e-6)
    swapped = torch_kid(REAL, FAKE, subsets, size)
    assert size == 290 or abs(found.value - swapped[0]) > 1e-5


def test_subsets_in_float64():
    rng, values = np.random.RandomState(3), []
    for _ in range(20):
        fake, real = (x[rng.choice(len(x), 50, replace=False)] for x in (FAKE, REAL))
        values.append(unbiased(real, fake))
    found = kid(REAL, FAKE, subsets=20, subset_size=50, seed=3)
    np.testing.assert_allclose(found[:2], (np.mean(values), np.std(values)), rtol=0, atol=1e-6)


def test_subsets_no_larger_than_the_sets():
    found = kid(REAL, FAKE, subsets=2)
    assert found.subset_size == 290
    assert found[:2] == kid(REAL, FAKE, subsets=2, subset_size=290)[:2]


def test_all_pairs_in_float64():
    found = kid(REAL, FAKE, subsets=None)
    assert found.value == pytest.approx(unbiased(REAL, FAKE), abs=1e-7)
    assert found.subset_size is None
    leave_one_out = [
        (len(x) - 1) * np.var([value(np.delete(x, i, 0)) for i in range(len(x))])
        for x, value in (
            (REAL[:40], lambda x: unbiased(x, FAKE[:50])),
            (FAKE[:50], lambda y: unbiased(REAL[:40], y)),
        )
    ]
    found = kid(REAL[:40], FAKE[:50], subsets=None)
    assert found.std == pytest.approx(np.sum(leave_one_out) ** 0.5, rel=1e-4)


def test_tiles_change_nothing():
    from aigc_jax.metrics.kid import _row_sums

    truth = kernels(REAL, FAKE).sum(1)
    for tile in (64, 1000):
        np.testing.assert_allclose(_row_sums(REAL, FAKE, tile), truth, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_interval_covers(shift):
    """Samples of two known populations, whose distance is a finite sum."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(64, 4)), rng.normal(size=(64, 4)) + shift
    if not shift:
        b = a
    truth = kernels(a, a).mean() + kernels(b, b).mean() - 2 * kernels(a, b).mean()
    inside = []
    for _ in range(100):
        low, high = kid(a[rng.integers(0, 64, 80)], b[rng.integers(0, 64, 80)], None).interval()
        inside.append(low < truth < high)
    assert np.mean(inside) > 0.88


def test_it_is_unbiased_and_may_be_negative():
    rng = np.random.default_rng(0)
    values = [kid(*rng.normal(size=(2, 50, 8)), None).value for _ in range(100)]
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * np.std(values) / 10


def test_wrong_arguments():
    with pytest.raises(UserError, match="at least 2 images a side, got 1"):
        kid(REAL, FAKE[:1])
    with pytest.raises(UserError, match="at least 3 images a side, got 2"):
        kid(REAL[:2], FAKE, subsets=None)
    with pytest.raises(ValueError, match="64 and 63"):
        kid(REAL, FAKE[:, :63])
    with pytest.raises(ValueError, match="subsets=None"):
        kid(REAL, FAKE, 2, 10).interval()
