"""The Frechet distance against closed forms, scipy's root, torch-fidelity's and pytorch-fid's."""

import importlib
import warnings

import inception_random
import jax
import numpy as np
import pytest
import scipy.linalg

from aigc_jax.errors import UserError
from aigc_jax.metrics import fid, statistics
from aigc_jax.metrics.statistics import Statistics, from_features


def features(n, dim, seed=0, shift=0.0):
    """Correlated features whose covariance has a condition number of some 1e6."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(dim, dim)))[0]
    basis += 0.05 * rng.normal(size=(dim, dim)) / dim**0.5
    spread = 10 ** -np.linspace(0, 3, dim)
    return rng.normal(size=(n, dim)) * spread @ basis + shift


def pair(n, dim, m=None):
    return features(n, dim, 1), features(m or n, dim, 2, shift=0.1)


def both(x, y):
    return from_features(x), from_features(y)


def distance(a, b, **options):
    return fid.frechet_distance(a.mu, a.sigma, b.mu, b.sigma, **options)


@pytest.fixture(scope="module")
def torch_distance():
    pytest.importorskip("torch")
    inception_random.allow_torchvision()
    pytest.importorskip("torch_fidelity")
    metric = importlib.import_module("torch_fidelity.metric_fid").fid_statistics_to_metric

    def torch_distance(a, b):
        a, b = ({"mu": s.mu, "sigma": s.sigma} for s in (a, b))
        return metric(a, b, verbose=False)["frechet_inception_distance"]

    return torch_distance


@pytest.fixture(scope="module")
def pytorch_fid():
    pytest.importorskip("torch")
    inception_random.allow_torchvision()
    pytest.importorskip("pytorch_fid")
    return importlib.import_module("pytorch_fid.fid_score").calculate_frechet_distance


# ---- statistics ----


def test_closed_form_of_covariances_that_commute():
    rng = np.random.default_rng(0)
    a, b, shift = rng.uniform(0, 3, 20), rng.uniform(0, 3, 20), rng.normal(size=20)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    sigmas = [basis * variance @ basis.T for variance in (a, b)]
    found = fid.frechet(Statistics(np.zeros(20), sigmas[0]), Statistics(shift, sigmas[1]))
    assert found.mean_part == pytest.approx(shift @ shift, rel=1e-12)
    assert found.covariance_part == pytest.approx(np.sum((a**0.5 - b**0.5) ** 2), rel=1e-10)
    assert found.value == found.mean_part + found.covariance_part
    assert (found.rank_a, found.rank_b) == (20, 20)


def test_root_of_the_definition():
    a, b = both(*pair(500, 24))
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    truth = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma + b.sigma - 2 * root.real)
    assert distance(a, b) == pytest.approx(truth, rel=1e-9)


def test_other_implementations_at_full_rank(torch_distance):
    a, b = both(*pair(2000, 64))
    assert distance(a, b) == pytest.approx(torch_distance(a, b), rel=1e-8)
    assert distance(a, b, method="reference") == pytest.approx(torch_distance(a, b), rel=1e-12)


def test_pytorch_fids_number(pytorch_fid):
    a, b = both(*pair(2000, 64))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `disp` argument is deprecated")
        truth = pytorch_fid(a.mu, a.sigma, b.mu, b.sigma)
    assert distance(a, b) == pytest.approx(truth, rel=1e-8)


def test_other_implementations_below_full_rank(torch_distance):
    a, b = both(*pair(30, 64))
    assert distance(a, b) == pytest.approx(torch_distance(a, b), rel=1e-3)  # theirs is rounding
    assert distance(a, b, method="reference") == pytest.approx(torch_distance(a, b), rel=1e-12)


def test_below_full_rank_it_is_exact():
    x, y = pair(40, 128, 70)
    a, b = both(x, y)
    cross = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt(39 * 69)
    truth = np.sum((a.mu - b.mu) ** 2) + np.trace(a.sigma + b.sigma)
    truth -= 2 * np.linalg.svd(cross, compute_uv=False).sum()
    found = fid.frechet(a, b)
    assert found.value == pytest.approx(truth, rel=1e-9)
    assert (found.rank_a, found.rank_b) == (39, 69)
    assert fid.frechet_from_features(x, y).value == pytest.approx(truth, rel=1e-12)


def test_ill_conditioned_covariances_keep_their_digits():
    """Eigenvalues of the product's square would lose half of them."""
    variance = 10.0 ** -np.linspace(0, 11, 30)
    basis = scipy.linalg.hadamard(32)[:30, :30] * 1.0
    basis = np.linalg.qr(basis)[0]
    a, b = (Statistics(np.zeros(30), basis * v @ basis.T) for v in (variance, variance[::-1]))
    truth = np.sum((variance**0.5 - variance[::-1] ** 0.5) ** 2)
    assert distance(a, b) == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("n", [50, 400])
def test_a_set_is_at_no_distance_from_itself(n):
    a = from_features(features(n, 100))
    assert abs(distance(a, a)) < 1e-9 * np.trace(a.sigma)


def test_disjoint_supports():
    a, b = np.diag([1.0, 2, 0, 0]), np.diag([0, 0, 3.0, 4])
    assert fid.frechet_distance(np.zeros(4), a, np.ones(4), b) == pytest.approx(14, rel=1e-12)


def test_features_that_are_always_zero():
    x, y = (np.pad(z, [(0, 0), (0, 5)]) for z in pair(300, 10))
    assert distance(*both(x, y)) == pytest.approx(distance(*both(*pair(300, 10))), rel=1e-9)
    assert fid.frechet(*both(x, 0 * y)).rank_b == 0


def test_it_is_symmetric():
    a, b = both(*pair(300, 50))
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-10)


def test_diverged_features_have_no_distance():
    a, b = both(*pair(50, 4))
    broken = Statistics(a.mu * np.nan, a.sigma)
    assert np.isnan(distance(broken, b))


def test_wrong_arguments():
    a, b = both(*pair(50, 4))
    with pytest.raises(ValueError, match="of 4 and of 3 features"):
        fid.frechet(a, from_features(features(50, 3)))
    with pytest.raises(ValueError, match="'sqrtm'"):
        fid.frechet(a, b, method="sqrtm")
    with pytest.raises(ValueError, match="4 and 3 numbers"):
        fid.frechet_from_features(features(50, 4), features(50, 3))


# ---- features ----


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("n, m", [(400, 300), (400, 30), (30, 30)])
def test_features_and_statistics_agree(n, m, ddof):
    x, y = pair(n, 64, m)
    found = fid.frechet_from_features(x, y, ddof)
    truth = fid.frechet(from_features(x, ddof), from_features(y, ddof))
    np.testing.assert_allclose(found[:3], truth[:3], rtol=1e-9)


def test_two_images_are_enough():
    x, y = np.array([[0.0, 0], [2, 0]]), np.array([[0.0, 0], [0, 4]])
    assert fid.frechet_from_features(x, y).value == pytest.approx(1 + 4 + 2 + 8, rel=1e-12)
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        fid.frechet_from_features(x[:1], y)


def test_device_float32():
    a, b = both(*pair(1000, 96))
    found = jax.jit(fid.frechet_on_device)(*(np.float32(v) for v in (a.mu, a.sigma, b.mu, b.sigma)))
    assert found.dtype == np.float32
    assert float(found) == pytest.approx(distance(a, b), rel=1e-5)


def test_device_tells_what_it_cannot_do():
    a, b = both(*pair(20, 96))
    assert np.isnan(fid.frechet_on_device(a.mu, a.sigma, b.mu, b.sigma))


# ---- uncertainty ----


def test_infinity_removes_the_bias():
    dim, n = 32, 1000
    rng = np.random.default_rng(0)
    target = Statistics(np.full(dim, 0.2), np.eye(dim))
    truth = 0.04 * dim
    found = [fid.fid_infinity(rng.normal(size=(n, dim)), target, seed=s) for s in range(8)]
    biased = np.mean([f.distances[-1] for f in found]) - truth
    left = np.mean([f.value for f in found]) - truth
    assert biased > 0.2
    assert abs(left) < biased / 4
    assert all(f.slope > 0 for f in found)
    assert (len(found[0].sizes), found[0].sizes[0], found[0].sizes[-1]) == (15, 100, n)


def test_infinity_is_the_fit_of_what_it_tells():
    x, y = pair(200, 8)
    found = fid.fid_infinity(x, y, sizes=6, seed=3)
    design = np.stack([1 / np.array(found.sizes), np.ones(6)], 1)
    slope, value = np.linalg.lstsq(design, np.array(found.distances), rcond=None)[0]
    np.testing.assert_allclose((found.slope, found.value), (slope, value), rtol=1e-6)
    assert found.distances[-1] == pytest.approx(fid.frechet_from_features(x, y).value, rel=1e-9)
    assert found == fid.fid_infinity(x, from_features(y), sizes=6, seed=3)
    with pytest.raises(UserError, match="got 19"):
        fid.fid_infinity(x[:19], y)


@pytest.mark.parametrize("known", [False, True], ids=["two samples", "real known"])
def test_interval_covers(known):
    """N(0, I) and N(.5, I), 4-d, 400 images each: the distance 1, and its bias of some .02."""
    rng = np.random.default_rng(0)
    target = Statistics(np.full(4, 0.5), np.eye(4))
    intervals, values = [], []
    for _ in range(120):
        x, y = rng.normal(size=(400, 4)), rng.normal(size=(400, 4)) + 0.5
        intervals.append(fid.interval(x, target if known else y))
        values.append(fid.frechet(from_features(x), target if known else from_features(y)).value)
    low, high = np.array(intervals).T
    np.testing.assert_allclose((low + high) / 2, values)
    covered = np.mean((low < np.mean(values)) & (np.mean(values) < high))
    assert 0.9 <= covered <= 0.995
    assert np.mean((low < 1) & (high > 1)) > 0.88
    assert np.mean(high - low) < 2 * 2.6 * np.std(values)  # t of 9 degrees: 2.26


def test_interval_below_full_rank():
    x, y = pair(60, 100)
    low, high = fid.interval(x, y)
    assert low < fid.frechet_from_features(x, y).value < high
    with pytest.raises(UserError, match="at least 20 images, got 19"):
        fid.interval(x[:19], y)


def test_warnings():
    assert fid.warnings_for(50_000, 10_000, 2048) == []
    assert fid.warnings_for(None, 10_000, 2048) == []
    assert [w.split(" images")[0] for w in fid.warnings_for(5000, 2048, 2048)] == [
        "5000 real and 2048 generated",
        "2048 generated",
    ]
    for counts in ((1, 10), (10, 1), (None, 0)):
        with pytest.raises(UserError, match="at least 2"):
            fid.warnings_for(*counts, 2048)


def test_float32_statistics_below_full_rank():
    """What float32 rounding adds beyond the rank of n images is known not to be theirs."""
    rng = np.random.default_rng(0)
    x, y = (np.abs(rng.normal(size=(40, 256)) + 0.4).astype(np.float32) for _ in range(2))
    a, b = (statistics.finalize(statistics.update(statistics.init(256), f)) for f in (x, y))
    assert abs(fid.frechet(a, a).value) < 1e-8
    truth = fid.frechet_from_features(x, y).value
    assert fid.frechet(a, b).value == pytest.approx(truth, rel=1e-6)
