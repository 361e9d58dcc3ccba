"""The Inception score against torch-fidelity's and closed forms, at once and streamed."""

import functools
import importlib

import inception_random
import jax
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.metrics import inception_score as isc

N, K = 1003, 40
LOGITS = (3 * np.random.default_rng(0).normal(size=(N, K))).astype(np.float32)
update = jax.jit(isc.update)


@pytest.fixture(scope="module")
def torch_score():
    torch = pytest.importorskip("torch")
    inception_random.allow_torchvision()
    pytest.importorskip("torch_fidelity")
    metric = importlib.import_module("torch_fidelity.metric_isc").isc_features_to_metric
    return lambda logits, **options: tuple(metric(torch.tensor(logits), **options).values())


def streamed(state, batch=64, logits=LOGITS):
    for start in range(0, len(logits), batch):
        index = np.arange(start, start + batch)
        rows = logits[np.minimum(index, len(logits) - 1)].copy()
        rows[index >= len(logits)] = np.nan
        state = update(state, rows, index.astype(np.int32), index < len(logits))
    return state


@pytest.mark.parametrize("splits, shuffle", [(10, True), (1, True), (7, False)])
def test_torch_fidelitys_number(splits, shuffle, torch_score):
    seed = 2020 if shuffle else None
    found = isc.inception_score(LOGITS, splits, shuffle_seed=seed)
    np.testing.assert_allclose(found[:2], torch_score(LOGITS, splits=splits, shuffle=shuffle), 1e-9)
    assert len(found.splits) == splits


@pytest.mark.parametrize("splits", [1, 10])
def test_streaming_agrees(splits):
    found = isc.compute(streamed(isc.init(K, splits, N)))
    truth = isc.inception_score(LOGITS, splits)
    np.testing.assert_allclose(found.splits, truth.splits, rtol=1e-5)
    np.testing.assert_allclose(found[:2], truth[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [7, 32])
def test_batch_size_does_not_matter(batch):
    found, truth = (isc.compute(streamed(isc.init(K, 10, N), b)) for b in (batch, 64))
    np.testing.assert_allclose(found.splits, truth.splits, rtol=1e-6)


def test_order_of_the_images_does_not_matter():
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    state = update(isc.init(K, 10, N), LOGITS[order], order)
    np.testing.assert_allclose(isc.compute(state).splits, isc.inception_score(LOGITS).splits, 1e-5)


def test_split_size_is_adms_chunks():
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    chunks = [p[i : i + 300] for i in range(0, N, 300)]  # the last has 103
    scores = [np.exp(np.mean(np.sum(c * np.log(c / c.mean(0)), 1))) for c in chunks]
    options = {"shuffle_seed": None, "split_size": 300}
    found = isc.inception_score(LOGITS, **options)
    np.testing.assert_allclose(found.splits, scores, rtol=1e-9)
    np.testing.assert_allclose(found.value, np.mean(scores), rtol=1e-9)
    streaming = isc.compute(streamed(isc.init(K, 10, N, **options)))
    np.testing.assert_allclose(streaming.splits, scores, rtol=1e-5)


def test_closed_forms():
    certain = 1e4 * np.eye(5, dtype=np.float32)[np.arange(100) % 5]
    assert isc.inception_score(certain, 1).value == pytest.approx(5, rel=1e-12)
    assert isc.inception_score(np.zeros((100, 5))).value == pytest.approx(1, rel=1e-12)
    state = update(isc.init(5, 1, 100), certain, np.arange(100, dtype=np.int32))
    assert isc.compute(state).value == pytest.approx(5, rel=1e-6)


def test_merge_is_associative():
    index = np.arange(N, dtype=np.int32)
    start = isc.init(K, 10, N)
    a, b, c = (update(start, LOGITS[i], i) for i in np.split(index, [200, 700]))
    truth = isc.inception_score(LOGITS).splits
    for state in (isc.merge(isc.merge(a, b), c), isc.merge(a, isc.merge(b, c))):
        np.testing.assert_allclose(isc.compute(state).splits, truth, rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_across_devices(devices):
    start = isc.init(K, 10, 1000)
    index = np.arange(1000, dtype=np.int32).reshape(devices, -1)

    @functools.partial(jax.pmap, axis_name="data", devices=jax.devices()[:devices], out_axes=None)
    def sums(index, logits):
        return isc.across(isc.update(start, logits, index), "data")

    found = isc.compute(sums(index, LOGITS[index]))
    np.testing.assert_allclose(found.splits, isc.inception_score(LOGITS[:1000]).splits, 1e-5)


def test_images_beyond_the_last_are_ignored():
    state = streamed(isc.init(K, 10, 500))
    truth = isc.inception_score(LOGITS[:500])
    np.testing.assert_allclose(isc.compute(state).splits, truth.splits, rtol=1e-5)


def test_too_few_images():
    for score in (functools.partial(isc.inception_score, LOGITS[:9]), lambda: isc.init(K, 10, 9)):
        with pytest.raises(UserError, match="9 images can't be dealt to 10 splits"):
            score()
    with pytest.raises(UserError, match="got none"):
        isc.inception_score(LOGITS[:0], split_size=5)
    with pytest.raises(UserError, match="Only 0 of 20 images came"):
        isc.compute(isc.init(K, 10, 20))
