"""What the tasks of translation put in a batch: against Pillow's grey, and the halves as given."""

import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import pipeline, tasks
from aigc_jax.data.dataset import Dataset
from aigc_jax.errors import UserError


def one_batch(images, task, labels=None):
    """The images in order, through the pipeline."""
    data = Dataset(
        name="test", num_examples=len(images), image_size=images.shape[1],
        channels=images.shape[-1], class_names=() if labels is None else ("x", "y"),
        images=images, labels=labels,
    )  # fmt: skip
    return next(pipeline.eval_batches(data, task, batch_size=len(images)))


def noise(channels, count=4):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, channels), np.uint8)


def levels(images):
    return np.round((images + 1) * 127.5).astype(np.uint8)


def test_colorize_is_grey_as_pillow_converts_it():
    photos = noise(3)
    batch = one_batch(photos, tasks.colorize)
    assert batch.keys() == {"a", "b", "index", "valid"}
    np.testing.assert_array_equal(levels(batch["b"]), photos)
    assert batch["a"].shape == (4, 32, 32, 3) and batch["a"].dtype == np.float32
    np.testing.assert_array_equal(batch["a"], levels(batch["a"]) / np.float32(127.5) - 1)
    for found, photo in zip(levels(batch["a"]), photos, strict=True):
        truth = np.asarray(Image.fromarray(photo).convert("L"), int)[..., None]
        assert np.abs(found - truth).max() <= 1
        assert (found == truth).mean() > 0.99


def test_grey_stays_as_it_is():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    batch = one_batch(grey, tasks.colorize)
    np.testing.assert_array_equal(levels(batch["a"]), grey)
    assert batch["a"].min() == -1 and batch["a"].max() == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_the_halves(channels):
    left, right = noise(channels), 255 - noise(channels)
    batch = one_batch(np.concatenate([left, right], axis=-1), tasks.pairs)
    np.testing.assert_array_equal(levels(batch["a"]), left)
    np.testing.assert_array_equal(levels(batch["b"]), right)


@pytest.mark.parametrize("task", [tasks.colorize, tasks.pairs])
def test_labels_are_passed_on(task):
    labels = np.array([1, 0, 0, 1], np.int32)
    images = noise(3) if task is tasks.colorize else noise(6)
    np.testing.assert_array_equal(one_batch(images, task, labels)["label"], labels)


@pytest.mark.parametrize(
    ("channels", "task", "line"),
    [
        (1, "colorize", "'colorize' needs colour and this source is grey"),
        (6, "colorize", "'colorize' needs single images and this source holds pairs"),
        (6, "generate", "'generate' needs single images and this source holds pairs: set config"),
        (2, "label", "'label' needs single images"),
        (3, "pairs", "'pairs' needs side by side images: name their folder, pairs:DIR"),
        (3, "unpaired", "'unpaired' needs two domains: set config.data.a and data.b"),
    ],
)
def test_sources_of_another_kind(channels, task, line):
    with pytest.raises(UserError) as error:
        one_batch(noise(channels), tasks.find(task), np.zeros(4, np.int32))
    assert line in str(error.value) and "\n" not in str(error.value)
