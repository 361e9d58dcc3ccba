"""Images to features to scores, through a small network whose features are known."""

import dataclasses

import jax
import numpy as np
import pytest

from aigc_jax import parallel, suite
from aigc_jax.errors import UserError
from aigc_jax.metrics import fid
from aigc_jax.metrics.extractors import Extractor
from aigc_jax.metrics.protocols import PROTOCOLS
from aigc_jax.metrics.statistics import from_features
from aigc_jax.scoring import Seen, Viewer, rebatch

DIM = 6


def features_of(images):
    """What the small network gives, in float64: mean colours of the quarters."""
    x = images.astype(np.float64) / 255
    n, h, w, c = x.shape
    return x.reshape(n, 2, h // 2, 2, w // 2, c).mean((2, 4)).reshape(n, -1)[:, :DIM]


def extractor(**fields):
    def apply(variables, images):
        x = images.astype("float32") / 255
        n, h, w, c = x.shape
        quarters = x.reshape(n, 2, h // 2, 2, w // 2, c).mean((2, 4)).reshape(n, -1)[:, :DIM]
        return {"features": quarters, "logits": quarters @ variables["w"]}

    w = np.random.default_rng(0).normal(size=(DIM, 3)).astype(np.float32)
    return Extractor("quarters", {"w": w}, apply, provenance={"extractor": "quarters"}, **fields)


@dataclasses.dataclass
class Given:
    """Images in batches of any sizes, with fillers in them."""

    images: np.ndarray
    sizes: tuple = (5,)
    name: str = "given"
    labels: list = dataclasses.field(default_factory=list)

    @property
    def n(self):
        return len(self.images)

    @property
    def size(self):
        return self.images.shape[1:3]

    def batches(self, batch_size, transform=None):
        start, i = 0, 0
        while start < self.n:
            part = self.images[start : start + self.sizes[i % len(self.sizes)]]
            if transform:
                part = np.stack([transform(x) for x in part])
            filler = np.full_like(part[:1], 255)
            yield np.concatenate([part, filler]), np.array([1.0] * len(part) + [0.0])
            start, i = start + len(part), i + 1


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return rng.integers(0, 255, (61, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch_size", [7, 32, 64])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("sizes", [(5,), (1, 30, 2)])
def test_features_whatever_the_batches_and_devices(images, batch_size, devices, sizes):
    layout = parallel.layout("jit", jax.devices()[:devices])
    viewer = Viewer(extractor(), layout=layout, batch_size=batch_size)
    seen = viewer.see(Given(images, sizes), quiet=True)
    np.testing.assert_allclose(seen.features, features_of(images), rtol=1e-6)
    assert seen.n == 61 and seen.statistics.meta["images"] == "given"
    truth = from_features(features_of(images))
    np.testing.assert_allclose(seen.statistics.mu, truth.mu, rtol=1e-6)
    np.testing.assert_allclose(seen.statistics.sigma, truth.sigma, rtol=1e-5, atol=1e-9)


def test_summed_up_as_they_come(images):
    viewer = Viewer(extractor(), PROTOCOLS["stylegan"], batch_size=16)
    seen = viewer.see(Given(images), keep=False, quiet=True)
    assert seen.features is None and seen.n == 61
    truth = from_features(features_of(images), ddof=0)
    np.testing.assert_allclose(seen.statistics.mu, truth.mu, rtol=1e-6)
    np.testing.assert_allclose(seen.statistics.sigma, truth.sigma, rtol=1e-5, atol=1e-9)


def test_rebatch():
    arrays = [np.arange(n)[:, None] + 100 * i for i, n in enumerate([3, 0, 9, 1])]
    batches = list(rebatch(arrays, 4))
    assert [n for _, n in batches] == [4, 4, 4, 1] and all(len(x) == 4 for x, _ in batches)
    joined = np.concatenate([x[:n] for x, n in batches])
    np.testing.assert_array_equal(joined, np.concatenate(arrays))
    assert (batches[-1][0][1:] == 0).all()
    assert list(rebatch([], 4)) == []


def test_a_seen_set_is_read_back(images, tmp_path):
    seen = Viewer(extractor()).see(Given(images), quiet=True)
    seen = dataclasses.replace(seen, labels=np.arange(61))
    seen.save(tmp_path / "new" / "x")
    again = Seen.load(tmp_path / "new" / "x", "given")
    for name in ("features", "logits", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))
    np.testing.assert_array_equal(again.statistics.sigma, seen.statistics.sigma)
    assert again.statistics.meta == seen.statistics.meta and again.n == 61


def test_images_of_another_size(images):
    viewer = Viewer(extractor(size=(4, 4)))
    with pytest.raises(UserError, match="given has images of 8x8, quarters reads 4x4"):
        viewer.see(Given(images), quiet=True)


def test_resized_on_the_host_where_that_is_exact(images):
    half = extractor(size=(4, 4), resize=lambda x: x[::2, ::2], resize_first=True)
    seen = Viewer(half).see(Given(images), quiet=True)
    np.testing.assert_allclose(seen.features, features_of(images[:, ::2, ::2]), rtol=1e-6)


def test_one_image_is_too_few(images):
    with pytest.raises(UserError, match="given: 1 images"):
        Viewer(extractor()).see(Given(images[:1]), quiet=True)


# ---- the suite ----


@pytest.fixture(scope="module")
def sides(images):
    viewer = Viewer(extractor())
    brighter = (images // 2 + 100).astype(np.uint8)[:40]
    return viewer.see(Given(images), quiet=True), viewer.see(Given(brighter), quiet=True)


def test_every_metric_leaves_a_record(sides):
    real, fake = (dataclasses.replace(x, labels=np.arange(x.n) % 3) for x in sides)
    others = ("sfid", "fid_infinity", "attributes", "r_precision")  # of other networks, or of more
    names = [name for name in suite.METRICS if name not in others]
    found = suite.score(names, real, fake, suite.Settings(interval=True))
    assert list(found) == names
    assert found["fid"]["value"] == pytest.approx(
        fid.frechet_from_features(real.features, fake.features).value
    )
    assert (found["fid"]["n_real"], found["fid"]["n_fake"]) == (61, 40)
    low, high = found["fid"]["interval"]
    assert low < found["fid"]["value"] < high
    parts = found["fid"]["mean_part"] + found["fid"]["covariance_part"]
    assert parts == pytest.approx(found["fid"]["value"])
    assert next(iter(found["kid"])) == "value" and found["kid"]["subset_size"] == 40
    assert 0 <= found["prdc"]["coverage"] <= 1
    right = (fake.logits.argmax(-1) == np.arange(40) % 3).mean()
    assert found["label_accuracy"]["value"] == pytest.approx(right)


def test_few_images_are_said_not_refused(sides):
    lines = suite.remarks(suite.score(["fid"], *sides, suite.Settings()))
    assert [line.partition(" images")[0] for line in lines] == ["61 real and 40 generated"]
    assert suite.remarks({"is": {"value": 1.0}}) == []


def test_the_inception_score_needs_no_real_images(sides):
    found = suite.score(["is"], None, sides[1], suite.Settings())
    assert found["is"]["value"] >= 1 and found["is"]["splits"] == 10


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        (["fdi"], {}, "Unknown metric 'fdi'. Did you mean 'fid'"),
        (["kid"], {"real": None}, "kid compares with real images: give --real"),
        (["kid"], {"features": None}, "name the images themselves"),
        (["is"], {"logits": None}, "no classes"),
        (["label_accuracy"], {}, "no labels"),
        (["sfid"], {}, "--protocol adm"),
    ],
)
def test_what_is_missing_is_named(sides, names, change, words):
    real, fake = sides
    if "real" in change:
        real = None
    else:
        real, fake = (dataclasses.replace(x, **change) for x in sides)
    with pytest.raises(UserError, match=words):
        suite.score(names, real, fake, suite.Settings())


def test_statistics_of_another_dimension(sides):
    real = dataclasses.replace(sides[0], statistics=from_features(np.eye(9)))
    with pytest.raises(UserError, match="given has 9 features, given 6: they are of different"):
        suite.score(["fid"], real, sides[1], suite.Settings())
