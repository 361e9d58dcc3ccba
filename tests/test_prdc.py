"""Precision, recall, density, coverage against prdc, torch-fidelity and brute force."""

import contextlib
import importlib
import io

import inception_random
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.metrics import prdc as module
from aigc_jax.metrics.prdc import PRDC, prdc, precision_recall


def sets(n=300, m=250, dim=16, scale=0.8, shift=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)), rng.normal(size=(m, dim)) * scale + shift


def brute_force(real, fake, k, strict=True):
    """The definitions, from differences in float64."""

    def distances(x, y):
        return np.array([np.square(y - row).sum(1) for row in x])

    def radii(x):
        return np.sort(distances(x, x), 1)[:, k]  # the first is the point itself

    def inside(x, radius):
        return x < radius if strict else x <= radius

    real, fake = real.astype(np.float64), fake.astype(np.float64)
    between = distances(real, fake)
    in_real = inside(between, radii(real)[:, None])
    in_fake = inside(between, radii(fake)[None])
    parts = in_real.any(0), in_fake.any(1), in_real.sum(0) / k, in_real.any(1)
    return PRDC(*(float(part.mean()) for part in parts))


@pytest.fixture(scope="module")
def naeem():
    compute = pytest.importorskip("prdc").compute_prdc

    def naeem(real, fake, k):
        with contextlib.redirect_stdout(io.StringIO()):
            return PRDC(**compute(real, fake, k))

    return naeem


@pytest.fixture(scope="module")
def torch_precision_recall():
    torch = pytest.importorskip("torch")
    inception_random.allow_torchvision()
    pytest.importorskip("torch_fidelity")
    metric = importlib.import_module("torch_fidelity.metric_prc").prc_features_to_metric

    def torch_precision_recall(real, fake, k):
        found = metric(torch.tensor(fake), torch.tensor(real), prc_neighborhood=k, verbose=False)
        return found["precision"], found["recall"]

    return torch_precision_recall


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "_TILE", 64)
    monkeypatch.setattr(module, "_starts", lambda n, size=64: range(0, n, size))


CASES = [dict(dim=2), dict(dim=16), dict(dim=200, scale=0.97, shift=0), dict(n=1200, m=900, dim=5)]


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_naeems_numbers(case, k, naeem):
    real, fake = sets(**case)
    np.testing.assert_allclose(prdc(real, fake, k), naeem(real, fake, k), rtol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_fidelitys_precision_and_recall(case, torch_precision_recall):
    real, fake = sets(**case)
    truth = torch_precision_recall(real, fake, 3)
    np.testing.assert_allclose(precision_recall(real, fake), truth, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("strict", [True, False])
def test_tiles_change_nothing(small_tiles, dtype, strict):
    real, fake = (x.astype(dtype) for x in sets())
    truth = brute_force(real, fake, 3, strict)
    if strict:
        np.testing.assert_allclose(prdc(real, fake, 3), truth, rtol=1e-12)
    else:
        np.testing.assert_allclose(precision_recall(real, fake), truth[:2], rtol=1e-12)


def test_float32_alone_would_err(monkeypatch):
    """Two far clusters and many near ties: rounding decides unless it is looked after."""
    rng = np.random.default_rng(0)
    side = np.where(np.arange(400) % 2, 3000.0, -3000.0)[:, None]
    real, fake = (np.round(rng.normal(size=(400, 3)) * 10) + side for _ in range(2))
    fake = fake + rng.choice([-1e-6, 0, 1e-6], fake.shape)
    truth = brute_force(real, fake, 4)
    np.testing.assert_allclose(prdc(real, fake, 4), truth, rtol=1e-12)
    monkeypatch.setattr(module, "_slack", lambda dim, dtype: 0.0)
    assert not np.allclose(prdc(real, fake, 4), truth, rtol=1e-12)


@pytest.mark.parametrize("strict", [True, False])
def test_ties_and_duplicates(strict):
    rng = np.random.default_rng(1)
    real, fake = rng.integers(0, 4, (300, 3)) * 1.0, rng.integers(0, 4, (200, 3)) * 1.0
    truth = brute_force(real, fake, 3, strict)
    found = prdc(real, fake, 3) if strict else precision_recall(real, fake, 3)
    np.testing.assert_allclose(found, truth[: len(found)], rtol=1e-12)


def test_a_set_and_itself():
    x, _ = sets()
    assert prdc(x, x) == PRDC(1.0, 1.0, 1.0, 1.0)
    assert precision_recall(x, x) == (1.0, 1.0)


def test_a_collapsed_generator():
    real, _ = sets(500)
    one_image = np.zeros((400, 16))
    found = prdc(real, one_image)
    np.testing.assert_allclose(found, brute_force(real, one_image, 5), rtol=1e-12)
    assert found.precision == 1.0
    assert found.recall == 0.0
    assert prdc(one_image, one_image) == PRDC(0.0, 0.0, 0.0, 0.0)  # balls of no size
    assert precision_recall(one_image, one_image) == (1.0, 1.0)


def test_sets_apart():
    real, fake = sets()
    assert prdc(real, fake + 100) == PRDC(0.0, 0.0, 0.0, 0.0)


def test_as_few_images_as_there_are_neighbours():
    real, fake = sets(6, 7)
    assert prdc(real, fake, 5) == brute_force(real, fake, 5)


# prdc's README: 10,000 of N(0, I) in 1000 dimensions, k = 5; and the spread over 8 such draws.
PUBLISHED = PRDC(0.4772, 0.4705, 1.0555, 0.9735)
SPREAD = PRDC(0.0127, 0.0110, 0.0618, 0.0065)


@pytest.mark.slow
def test_published_numbers_of_gaussians(naeem):
    real, fake = np.random.default_rng(0).normal(size=(2, 10_000, 1000)).astype(np.float32)
    found = prdc(real, fake)
    off = np.abs(np.subtract(found, PUBLISHED)) / SPREAD
    assert off.max() < 3 * 2**0.5, "the README's draw and this one differ by more than chance"
    # The package rounds distances to float32: a tie in 10^8 pairs may fall otherwise.
    np.testing.assert_allclose(found, naeem(real, fake, 5), rtol=1e-4)


def test_identical_distributions_in_expectation():
    """E density = 1 and E coverage = 1 - prod (Naeem et al. 2020, section 4 and lemma 2)."""
    n, k = 400, 5
    runs = [prdc(*np.random.default_rng(s).normal(size=(2, n, 8)), k) for s in range(12)]
    mean = PRDC(*np.mean(runs, 0))
    outside = np.prod([(n - i) / (2 * n - 1 - i) for i in range(k)])
    assert mean.density == pytest.approx(1, abs=0.05)
    assert mean.coverage == pytest.approx(1 - outside, abs=0.01)


def test_wrong_arguments():
    real, fake = sets()
    with pytest.raises(UserError, match="5 generated images have no 5-th"):
        prdc(real, fake[:5])
    with pytest.raises(UserError, match="real images aren't finite"):
        prdc(real * np.nan, fake)
    with pytest.raises(ValueError, match="16 and 15"):
        prdc(real, fake[:, :15])
    with pytest.raises(ValueError, match="k = 0"):
        prdc(real, fake, 0)
