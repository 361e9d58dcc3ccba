"""Moments that stream in float32 against float64, and files of statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.metrics import statistics
from aigc_jax.metrics.statistics import Statistics

update = jax.jit(statistics.update)
merge = jax.jit(statistics.merge)


def features(n, dim, mean=0.0, seed=0):
    """Correlated features whose variances span four decades, around `mean`."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) / dim**0.5
    return (mixed * 10 ** -np.linspace(0, 2, dim) + mean).astype(np.float32)


def streamed(x, batch, dim=None):
    state = statistics.init(dim or x.shape[1])
    for start in range(0, len(x), batch):
        state = update(state, x[start : start + batch])
    return state


def assert_close(found, truth, tolerance):
    """Covariances to `tolerance` of their largest entry, means to that of the largest spread."""
    scale = np.diagonal(truth.sigma).max()
    assert found.n == truth.n
    np.testing.assert_allclose(found.mu, truth.mu, atol=tolerance * scale**0.5, rtol=0)
    np.testing.assert_allclose(found.sigma, truth.sigma, atol=tolerance * scale, rtol=0)


def check_streaming(n, dim, mean, batch):
    x = features(n, dim, mean)
    found = statistics.finalize(streamed(x, batch))
    x = x.astype(np.float64)
    truth = Statistics(x.mean(0), np.cov(x, rowvar=False), n)
    assert_close(found, truth, 6e-7)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_float32_streams_as_float64(mean):
    check_streaming(20_000, 128, mean, 100)


@pytest.mark.slow
def test_float32_streams_as_float64_at_inceptions_size():
    check_streaming(50_000, 2048, 100.0, 250)


def test_sorted_features_are_as_accurate():
    x = features(8192, 32, mean=10.0)
    x = x[np.argsort(x[:, 0])]  # the first batch's mean, the shift, is far from the whole's
    found = statistics.finalize(streamed(x, 64))
    assert_close(found, statistics.from_features(x), 6e-7)


def test_compensation_gains_digits():
    x = features(2**16, 8)
    state = jax.lax.scan(
        lambda state, batch: (statistics.update(state, batch), None),
        statistics.init(8),
        x.reshape(-1, 8, 8),
    )[0]
    truth = statistics.from_features(x).sigma
    without = statistics.finalize(state.replace(error=jnp.zeros((8, 8)))).sigma
    errors = [np.abs(s - truth).max() for s in (statistics.finalize(state).sigma, without)]
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("batch", [7, 32, 64])
def test_batch_size_does_not_matter(batch):
    x = features(1001, 16, mean=5.0)
    assert_close(statistics.finalize(streamed(x, batch)), statistics.from_features(x), 2e-7)


def test_mask_is_slicing():
    x = features(64, 8, mean=3.0)
    kept = np.random.default_rng(1).random(64) < 0.6
    dirty = np.where(kept[:, None], x, np.nan)
    for mask in (kept, kept.astype(np.float32), kept.astype(np.int32)):
        found = statistics.finalize(update(statistics.init(8), dirty, mask))
        assert_close(found, statistics.from_features(x[kept]), 2e-7)


def test_masked_batches_change_nothing_wherever_they_come():
    x = features(32, 8)
    nothing = np.full((16, 8), np.nan, np.float32), np.zeros(16)
    state = update(update(statistics.init(8), *nothing), x)
    found = statistics.finalize(update(state, *nothing))
    assert_close(found, statistics.from_features(x), 2e-7)


def test_one_program_takes_every_batch():
    compiled = jax.jit(lambda *args: statistics.update(*args))
    state = statistics.init(8)
    for valid in (16, 3, 0):
        state = compiled(state, features(16, 8), np.arange(16) < valid)
    assert compiled._cache_size() == 1


def test_merge_is_associative():
    x = features(600, 16, mean=20.0)
    x[400:] += 50  # parts far apart
    parts = [streamed(part, 50) for part in np.split(x, [150, 400])]
    a, b, c = parts
    truth = statistics.from_features(x)
    for state in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
        assert_close(statistics.finalize(state), truth, 6e-7)


def test_no_features_are_neutral():
    state, nothing = streamed(features(40, 8, mean=7.0), 20), statistics.init(8)
    for merged in (merge(state, nothing), merge(nothing, state)):
        jax.tree.map(np.testing.assert_array_equal, merged, state)


@pytest.mark.parametrize("devices", [1, 8])
def test_across_devices(devices):
    x = features(960, 16, mean=9.0)
    mask = np.arange(960) % 5 > 0
    mask[:120] = False  # the first of 8 devices has none at all
    shards = (a.reshape(devices, -1, *a.shape[1:]) for a in (x, mask))

    @functools.partial(jax.pmap, axis_name="data", devices=jax.devices()[:devices], out_axes=None)
    def all_moments(x, mask):
        return statistics.across(update(statistics.init(16), x, mask), "data")

    found = statistics.finalize(all_moments(*shards))
    assert_close(found, statistics.from_features(x[mask]), 6e-7)


def test_across_under_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    x = features(320, 8, mean=9.0)
    moments = jax.shard_map(
        lambda x: statistics.across(statistics.update(statistics.init(8), x), "data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
    )
    assert_close(statistics.finalize(jax.jit(moments)(x)), statistics.from_features(x), 2e-7)


def test_across_nothing_is_the_identity():
    state = streamed(features(10, 4), 5)
    jax.tree.map(np.testing.assert_array_equal, statistics.across(state, None), state)


def test_millions_are_counted_exactly():
    state = streamed(features(10, 4), 5).replace(n=jnp.int32(16_777_216))
    assert statistics.finalize(update(state, features(1, 4))).n == 16_777_217


def test_finalize_divides_by_n_less_ddof():
    x = features(50, 4)
    found = statistics.finalize(streamed(x, 10), ddof=0)
    truth = np.cov(x.astype(np.float64), rowvar=False, ddof=0)
    np.testing.assert_allclose(found.sigma, truth, atol=1e-6)


def test_host_statistics_are_numpys():
    x = features(1000, 16, mean=100.0)
    found = statistics.from_features(x, rows=300)
    np.testing.assert_allclose(found.sigma, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)
    mean, covariance = statistics.moments(x)
    np.testing.assert_array_equal(mean, x.mean(0, dtype=np.float64))
    assert covariance.dtype == np.float64


@pytest.mark.parametrize("n", [0, 1])
def test_one_image_has_no_covariance(n):
    with pytest.raises(UserError, match=f"at least 2 images, got {n}"):
        statistics.finalize(update(statistics.init(3), np.ones((2, 3)), np.arange(2) < n))
    with pytest.raises(UserError, match=f"got {n}"):
        statistics.from_features(np.ones((n, 3)))


# ---- files ----


def some(dim=4, seed=0):
    return statistics.from_features(features(100, dim, seed=seed).astype(np.float64))


def test_files_keep_everything(tmp_path):
    spatial = some(3, seed=1)
    meta = {"protocol": "tf1", "weights": "ab" * 32}
    written = Statistics(some().mu, some().sigma, 100, meta, spatial)
    written.save(tmp_path / "s.npz")
    read = statistics.load(tmp_path / "s.npz", dim=4)
    np.testing.assert_array_equal(read.mu, written.mu)
    np.testing.assert_array_equal(read.sigma, written.sigma)
    np.testing.assert_array_equal(read.spatial.sigma, spatial.sigma)
    assert (read.n, read.meta, read.spatial.n) == (100, meta, 100)


def test_others_read_ours(tmp_path):
    some().save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as file:  # pytorch-fid, TTUR, EDM and ADM do no more
        np.testing.assert_array_equal(file["mu"][:], some().mu)
        np.testing.assert_array_equal(file["sigma"][:], some().sigma)
        assert file["mu"].dtype == file["sigma"].dtype == np.float64


def test_files_of_others_are_read(tmp_path):
    s = some()
    np.savez(tmp_path / "ttur.npz", mu=s.mu.astype(np.float32), sigma=s.sigma)
    np.savez_compressed(tmp_path / "edm.npz", mu=s.mu, sigma=s.sigma, other=np.array([None]))
    images = np.zeros((2, 4, 4, 3), np.uint8)
    adm = {"mu_s": np.zeros(2), "sigma_s": np.eye(2), "arr_0": images, "arr_1": np.arange(2)}
    np.savez(tmp_path / "adm.npz", mu=s.mu, sigma=s.sigma, **adm)
    for name in ("ttur", "edm", "adm"):
        read = statistics.load(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(read.mu, s.mu, rtol=1e-6)
        np.testing.assert_array_equal(read.sigma, s.sigma)
        assert read.mu.dtype == np.float64
        assert read.n is None
    assert len(read.spatial.mu) == 2


EYE, NAN = np.eye(2), np.array([[1.0, np.nan], [np.nan, 1.0]])
BAD = {
    "missing": ({"mu": np.zeros(2)}, "no sigma"),
    "images": ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "no mu and no sigma"),
    "square": ({"mu": np.zeros(2), "sigma": np.zeros((2, 3))}, "sigma is no covariance of 2"),
    "mean": ({"mu": np.zeros((2, 1)), "sigma": EYE}, r"mu is no finite mean \(D,\)"),
    "nan mean": ({"mu": np.array([0, np.inf]), "sigma": EYE}, "mu is no finite mean"),
    "nan": ({"mu": np.zeros(2), "sigma": NAN}, "aren't finite"),
    "asymmetric": ({"mu": np.zeros(2), "sigma": np.array([[1, 0.1], [0, 1]])}, "isn't symmetric"),
    "negative": ({"mu": np.zeros(2), "sigma": -EYE}, "a variance is negative"),
    "strings": ({"mu": np.array(["a", "b"]), "sigma": EYE}, "mu is no finite mean"),
    "objects": ({"mu": np.array([None, 1]), "sigma": EYE}, "can't be read"),
    "other network": ({"mu": np.zeros(3), "sigma": np.eye(3)}, "3 features, not of 2"),
    "meta": ({"mu": np.zeros(2), "sigma": EYE, "meta": np.array("{")}, "meta no JSON"),
    "n": ({"mu": np.zeros(2), "sigma": EYE, "n": np.arange(3)}, "n is no number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_is_wrong(name, tmp_path):
    arrays, message = BAD[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        statistics.load(tmp_path / "bad.npz", dim=2)
    assert "bad.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "text.npz").write_text("mu")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("text.npz", "array.npy", "cut.npz"):
        with pytest.raises(UserError, match=f"{name} can't be read"):
            statistics.load(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        statistics.load(tmp_path / "none.npz")
    with pytest.raises(UserError, match="can't be written"):
        some().save(tmp_path / "no" / "folder.npz")
