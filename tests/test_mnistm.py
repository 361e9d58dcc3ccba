"""MNIST-M against a blend written out in Python, digit by digit; real MNIST where it lies."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import mnistm, sources
from aigc_jax.errors import UserError

SIZES = {"mnist": (40, 12), "cifar10": (9, 5)}


def made(name, split):
    """Random images of a small set, and their labels."""
    size, channels = (28, 1) if name == "mnist" else (32, 3)
    count = SIZES[name][split == "test"]
    rng = np.random.default_rng([len(name), split == "test"])
    images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
    return images, np.arange(count) % 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Small sets in TFDS's format, by the names of the two that are read."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    for name in SIZES:
        splits = {split: made(name, split) for split in ("train", "test")}
        shape = splits["train"][0].shape[1:]
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            data_dir=folder,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            split_datasets={
                split: tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
                for split, (images, labels) in splits.items()
            },
        )
    return str(folder)


def load(root, source="mnistm", **kwargs):
    return sources.load(source, data_dir=root, **{"image_size": 28, **kwargs})


def by_hand(digit, photos):
    """One digit (28, 28, 1) over its photograph, pixel by pixel."""
    number = int.from_bytes(hashlib.blake2b(digit.tobytes(), digest_size=8).digest(), "little")
    number, mirrored = divmod(number, 2)
    number %= len(photos) * 25
    row, y, x = number // 25, number // 5 % 5, number % 5
    patch = [[photos[row][y + i][x + j] for j in range(28)] for i in range(28)]
    if mirrored:
        patch = [line[::-1] for line in patch]
    return [[[abs(int(level) - int(digit[i, j, 0])) for level in patch[i][j]]
             for j in range(28)] for i in range(28)]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "test"])
def test_blend_is_the_absolute_difference(root, split):
    data = load(root, f"mnistm:{split}")
    (digits, labels), (photos, _) = made("mnist", split), made("cifar10", split)
    truth = [by_hand(digit, photos) for digit in digits]
    np.testing.assert_array_equal(data.images, truth)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.name == f"mnistm/{split}" and data.class_names == tuple("0123456789")
    assert (data.shape, data.images.dtype) == ((28, 28, 3), np.uint8)


def test_photographs_and_places_are_uniform():
    """180 outcomes, each of 100 expected: chi-square of 179 degrees, 240 at one in a thousand."""
    digits = np.random.default_rng(0).integers(0, 2, (18_000, 6, 6, 1), np.uint8)
    photos = np.zeros((10, 8, 8, 2), np.uint8)  # by a number that ink of 0 or 1 leaves legible
    photos[..., 0] = 4 * np.arange(10)[:, None, None] + 2
    photos[..., 1] = 4 * np.arange(64).reshape(8, 8) + 2
    found = mnistm.blend(digits, photos) // 4
    mirrored = found[:, 0, 0, 1] > found[:, 0, 1, 1]
    y, x = np.divmod(found[:, 0].min(axis=1)[:, 1], 8)
    counts = np.bincount(
        np.ravel_multi_index((found[:, 0, 0, 0], y, x, mirrored * 1), (10, 3, 3, 2))
    )
    assert counts.shape == (180,) and ((counts - 100) ** 2 / 100).sum() < 240


def test_slices_agree_with_the_whole(root):
    whole = load(root, "mnistm:train")
    for part, rows in (("train[:10]", slice(10)), ("train[10:]", slice(10, None)),
                       ("train[50%:]", slice(20, None))):  # fmt: skip
        found = load(root, f"mnistm:{part}")
        np.testing.assert_array_equal(found.images, whole.images[rows])
        np.testing.assert_array_equal(found.labels, whole.labels[rows])
    both = load(root, split="all")
    assert both.num_examples == 52
    np.testing.assert_array_equal(both.images[40:], load(root, split="test").images)
    np.testing.assert_array_equal(both.images[:40], whole.images)
    mixed = load(root, "mnistm:test[:2]+train[3:5]").images
    np.testing.assert_array_equal(mixed, both.images[[40, 41, 3, 4]])


def test_resized_as_pillow_does(root):
    plain, large = load(root), load(root, image_size=40)
    read = load(root, image_size=40, cache_bytes=0)
    assert read.images is None and large.read is None
    for image, truth in zip(large.images, plain.images, strict=True):
        truth = Image.fromarray(truth).resize((40, 40), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(image, np.asarray(truth))
    images, rows = read.read(np.array([5, 0, 5]))
    np.testing.assert_array_equal(images, large.images[[5, 0, 5]])
    np.testing.assert_array_equal(rows, [5, 0, 5])


def test_in_grey(root):
    grey, colour = load(root, channels=1), load(root)
    assert grey.shape == (28, 28, 1)
    for image, truth in zip(grey.images[..., 0], colour.images, strict=True):
        assert np.abs(image - np.asarray(Image.fromarray(truth).convert("L"), int)).max() <= 1


def test_unknown_split(root):
    with pytest.raises(UserError, match=r"no split 'trian'\. Did you mean 'train'"):
        load(root, "mnistm:trian")


def test_real_mnist():
    if not os.environ.get("AIGC_DATA_DIR"):
        pytest.skip("AIGC_DATA_DIR is not set: no MNIST to read")
    data = sources.load("mnistm:test[:300]", image_size=28)
    digits = sources.load("tfds:mnist/test[:300]", image_size=28)
    photos = sources.load("tfds:cifar10/test", image_size=32).images
    np.testing.assert_array_equal(
        data.images[::60], [by_hand(d, photos) for d in digits.images[::60]]
    )
    np.testing.assert_array_equal(data.labels, digits.labels)
    # Where there is no ink the photograph is seen as it is: no two backgrounds are alike.
    assert len({image[:2].tobytes() for image in data.images}) > 290
