"""Features kept whole: compaction, merging, devices, overflow."""

import functools

import jax
import numpy as np
import pytest

from aigc_jax.metrics import buffer

update = jax.jit(buffer.update)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 3)).astype(np.float32)
KEPT = RNG.random(48) < 0.6


def filled(x, mask, capacity=48, batch=8):
    state = buffer.init(capacity, 3)
    for i in range(0, len(x), batch):
        state = update(state, x[i : i + batch], mask[i : i + batch])
    return state


def test_masked_rows_leave_no_gap():
    state = filled(np.where(KEPT[:, None], X, np.nan), KEPT)
    np.testing.assert_array_equal(buffer.compute(state), X[KEPT])


def test_without_a_mask_all_rows_are_kept():
    np.testing.assert_array_equal(buffer.compute(update(buffer.init(48, 3), X)), X)


def test_merge_appends():
    a, b = filled(X[:24], KEPT[:24], 24), filled(X[24:], KEPT[24:], 30)
    merged = jax.jit(buffer.merge)(a, b)
    np.testing.assert_array_equal(buffer.compute(merged), X[KEPT])
    assert merged.features.shape == (54, 3)


@pytest.mark.parametrize("devices", [1, 8])
def test_across_devices(devices):
    shards = (a.reshape(devices, -1, *a.shape[1:]) for a in (X, KEPT))

    @functools.partial(jax.pmap, axis_name="data", devices=jax.devices()[:devices], out_axes=None)
    def gathered(x, mask):
        state = buffer.init(len(x), 3)
        return buffer.across(buffer.update(state, x, mask), "data")

    np.testing.assert_array_equal(buffer.compute(gathered(*shards)), X[KEPT])


def test_across_nothing_is_the_identity():
    state = filled(X, KEPT)
    assert buffer.across(state, None) is state


def test_overflow_is_told_and_survives_merging():
    full = filled(X, KEPT, capacity=10)
    roomy = buffer.init(40, 3)
    for state in (full, buffer.merge(full, roomy), buffer.merge(roomy, full)):
        with pytest.raises(ValueError, match=f"{KEPT.sum() - 10} features found no room"):
            buffer.compute(state)


def test_full_is_not_overflow():
    np.testing.assert_array_equal(buffer.compute(filled(X, KEPT, KEPT.sum())), X[KEPT])
