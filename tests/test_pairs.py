"""Side by side images: what each half becomes, and the line where an image is no pair."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aigc_jax.data import pairs, pipeline, sources, tasks
from aigc_jax.errors import UserError


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))


def beside(left, right):
    whole = Image.new(left.mode, (left.width + right.width, left.height))
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width, 0))
    return whole


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.mark.parametrize("cache_bytes", [2 << 30, 0])
@pytest.mark.parametrize("shape", [(24, 24), (20, 36), (16, 16)])
def test_halves_are_resized_whole(tmp_path, shape, cache_bytes):
    for i in range(3):
        write(tmp_path / "set" / f"{i}.png", beside(picture(*shape, i), picture(*shape, 10 + i)))
    data = sources.load("pairs:set", image_size=16, cache_bytes=cache_bytes)
    assert (data.name, data.num_examples, data.shape) == ("pairs:set", 3, (16, 16, 6))
    assert (data.images is None) == (cache_bytes == 0) == (data.read is not None)
    images = data.images if cache_bytes else data.read(np.arange(3))[0]
    for i, image in enumerate(images):
        for half, seed in ((image[..., :3], i), (image[..., 3:], 10 + i)):
            truth = picture(*shape, seed).resize((16, 16), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(half, np.asarray(truth))


def test_grey_pairs_have_two_channels(tmp_path):
    write(tmp_path / "set" / "a.png", beside(picture(8, 8), picture(8, 8, 1)).convert("L"))
    grey = sources.load("pairs:set", image_size=8)
    colour = sources.load("pairs:set", image_size=8, channels=3)
    assert (grey.channels, colour.channels) == (2, 6)
    np.testing.assert_array_equal(grey.images.repeat(3, axis=-1), colour.images)
    batch = next(pipeline.eval_batches(grey, tasks.pairs, batch_size=1))
    assert batch["a"].shape == batch["b"].shape == (1, 8, 8, 1)


def test_one_pair_is_an_epoch(tmp_path):
    write(tmp_path / "set" / "a.png", beside(picture(8, 8), picture(8, 8, 1)))
    data = sources.load("pairs:set", image_size=8)
    assert next(pipeline.batches(data, tasks.pairs, batch_size=4, seed=0))["a"].shape[0] == 4


def test_splits_are_subfolders(tmp_path):
    for i, split in enumerate(["train", "train", "val"]):
        write(tmp_path / "maps" / split / f"{i}.png", beside(picture(8, 8, i), picture(8, 8)))
    train = sources.load("pairs:maps", image_size=8)
    val = sources.load("pairs:maps", split="val", image_size=8)
    assert (train.name, train.num_examples) == ("pairs:maps/train", 2)
    assert (val.name, val.num_examples) == ("pairs:maps/val", 1)
    with pytest.raises(UserError, match="no split 'test', but train, val: set"):
        sources.load("pairs:maps", split="test", image_size=8)
    with pytest.raises(UserError, match="into subfolders 'train' and 'test'"):
        sources.load("pairs:maps/train", split="test", image_size=8)


@pytest.mark.parametrize("cache_bytes", [2 << 30, 0])
def test_odd_width_names_the_file(tmp_path, cache_bytes):
    for i in range(150):  # one in a hundred unreadable files would be left out
        write(tmp_path / "set" / f"{i:03}.png", Image.new("RGB", (8, 4)))
    write(tmp_path / "set" / "odd.png", Image.new("RGB", (9, 4)))
    with pytest.raises(UserError, match=r"set/odd\.png is no pair: its width of 9 pixels"):
        sources.load("pairs:set", image_size=4, cache_bytes=cache_bytes)


def test_width_is_that_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    (tmp_path / "set").mkdir()
    Image.new("RGB", (9, 4)).save(tmp_path / "set" / "a.png", exif=exif)
    assert sources.load("pairs:set", image_size=4).shape == (4, 4, 6)


def test_file_that_became_odd_since(tmp_path):
    write(tmp_path / "set" / "a.png", Image.new("RGB", (8, 4)))
    data = sources.load("pairs:set", image_size=4, cache_bytes=0)
    write(tmp_path / "set" / "a.png", Image.new("RGB", (7, 4)))
    with pytest.raises(UserError, match=r"a\.png is no pair"):
        next(pipeline.batches(data, tasks.pairs, batch_size=1, seed=0))


def test_halves():
    left, right = picture(6, 5), picture(6, 5, 1)
    found = pairs.halves(beside(left, right), "x.png")
    for half, truth in zip(found, (left, right), strict=True):
        np.testing.assert_array_equal(np.asarray(half), np.asarray(truth))


def test_no_such_folder_and_no_images(tmp_path):
    with pytest.raises(UserError, match="no folder 'nowhere'"):
        sources.load("pairs:nowhere", image_size=8)
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="no images in"):
        sources.load("pairs:set", image_size=8)
