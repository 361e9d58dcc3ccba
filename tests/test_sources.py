"""Every kind of source, what it makes of real files, and the line it prints when it cannot."""

import logging
import os

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aigc_jax.data import sources
from aigc_jax.errors import UserError


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real_data(monkeypatch):
    """`$AIGC_DATA_DIR`, or a skip that says why."""
    if not os.environ.get("AIGC_DATA_DIR"):
        pytest.skip("AIGC_DATA_DIR is not set: no MNIST to read")
    return os.environ["AIGC_DATA_DIR"]


def natural(height, width, channels=3, seed=0):
    """A smooth picture: noise, blurred, over the whole range."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    image = Image.fromarray(noise[..., 0] if channels == 1 else noise)
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(2)), np.float32)
    image = (image - image.min()) / (image.max() - image.min()) * 200 + 28
    return image.round().astype(np.uint8)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


# --- the grammar ---


@pytest.mark.parametrize(
    ("source", "kind", "place"),
    [
        ("digits", "digits", ""),
        ("tfds:mnist", "tfds", "mnist"),
        ("tfds:mnist/train[:1000]", "tfds", "mnist/train[:1000]"),
        ("folder:a/b", "folder", "a/b"),
        ("npz:a.npz", "npz", "a.npz"),
    ],
)
def test_grammar(source, kind, place):
    assert sources.parse(source) == (kind, place)


def test_bare_path_is_guessed_and_said(tmp_path, caplog):
    write(tmp_path / "photos" / "a.png", natural(9, 9))
    np.savez(tmp_path / "x.npz", np.zeros((2, 4, 4, 3), np.uint8))
    with caplog.at_level(logging.WARNING):
        assert sources.load("photos", image_size=4).name == "folder:photos"
        assert sources.load(str(tmp_path / "x.npz"), image_size=4).num_examples == 2
    assert "'folder:photos'" in caplog.text
    assert "x.npz'" in caplog.text


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("tdfs:mnist", "'tdfs:mnist'. Did you mean 'tfds'"),
        ("digit", "Did you mean 'digits'"),
        ("photos", "cannot read the source 'photos'"),
        ("", "cannot read the source ''"),
        ("tfds:", "cannot read the source 'tfds:'"),
        ("folder:nowhere", "no folder 'nowhere'"),
        ("npz:nowhere.npz", "cannot read 'nowhere.npz'"),
    ],
)
def test_unreadable_sources(source, line):
    with pytest.raises(UserError) as error:
        sources.load(source, image_size=8)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_bare_name_of_a_prepared_set(tmp_path, monkeypatch):
    folder = tmp_path / "tfds" / "flowers" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    monkeypatch.setenv("AIGC_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="Did you mean 'tfds:flowers'"):
        sources.load("flowers", image_size=8)


def test_channels_must_be_one_or_three():
    with pytest.raises(UserError, match="not 4"):
        sources.load("digits", image_size=8, channels=4)


# --- digits ---


def test_digits_are_sklearns():
    from sklearn.datasets import load_digits

    truth = load_digits()
    data = sources.load("digits", split="all", image_size=8)
    assert data.images.shape == (1797, 8, 8, 1) and data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.labels, truth.target)
    np.testing.assert_allclose(data.images[..., 0], truth.images * 255 / 16, atol=0.5)
    assert data.num_classes == 10 and data.labels.dtype == np.int32


def test_digits_split_is_stratified_and_complete():
    train, test, whole = (
        sources.load("digits", split=split, image_size=8) for split in ("train", "test", "all")
    )
    assert (train.num_examples, test.num_examples) == (1497, 300)
    np.testing.assert_array_equal(np.bincount(test.labels), 30)
    both = np.concatenate([train.images, test.images]).reshape(1797, -1)
    everything = whole.images.reshape(1797, -1)
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(everything, axis=0))
    with pytest.raises(UserError, match="Did you mean 'test'"):
        sources.load("digits", split="tests", image_size=8)


def test_digits_grow_smoothly_over_the_whole_range():
    small = sources.load("digits", split="test", image_size=8).images.astype(float)
    data = sources.load("digits", split="test", image_size=32, channels=3)
    assert data.images.shape == (300, 32, 32, 3)
    assert data.images.min() == 0 and data.images.max() == 255
    assert len(np.unique(data.images)) > 200  # quantised once, after the resize
    # Averaged over its 4x4 block a pixel is again what it was, but for the filter's overshoot.
    back = data.images[..., :1].reshape(300, 8, 4, 8, 4, 1).mean(axis=(2, 4))
    assert np.corrcoef(back.ravel(), small.ravel())[0, 1] > 0.99


# --- folders ---


def test_folder_is_recursive_sorted_and_blind_to_case(tmp_path):
    names = ["b/z.JPG", "a.png", "b/y.Jpeg", "c/d/e.bmp", "f.webp", "g.gif"]
    for seed, name in enumerate(names):
        write(tmp_path / "set" / name, natural(12, 12, seed=seed))
    (tmp_path / "set" / "notes.txt").write_text("not an image")
    write(tmp_path / "set" / ".hidden" / "h.png", natural(12, 12))
    data = sources.load("folder:set", image_size=12)
    assert (data.num_examples, data.channels, data.class_names) == (6, 3, ())
    assert data.labels is None
    for image, name in zip(data.images, sorted(names), strict=True):
        with Image.open(tmp_path / "set" / name) as truth:
            np.testing.assert_array_equal(image, np.asarray(truth.convert("RGB")))


def test_images_are_cropped_to_the_central_square(tmp_path):
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 6:14] = natural(8, 8)
    write(tmp_path / "set" / "wide.png", wide)
    write(tmp_path / "set" / "tall.png", np.transpose(wide, (1, 0, 2)))
    tall, wide_again = sources.load("folder:set", image_size=8).images
    np.testing.assert_array_equal(wide_again, natural(8, 8))
    np.testing.assert_array_equal(tall, np.transpose(natural(8, 8), (1, 0, 2)))


def test_folder_converts_what_pil_can_open(tmp_path):
    folder = tmp_path / "set"
    rgb = natural(8, 8)
    write(folder / "0.png", np.dstack([rgb, np.full((8, 8), 7, np.uint8)]))  # RGBA
    write(folder / "1.png", (natural(8, 8, 1).astype(np.uint16) * 257))  # 16 bit
    Image.fromarray(rgb).convert("CMYK").save(folder / "2.jpg", quality=100, subsampling=0)
    Image.fromarray(rgb).quantize(256).save(folder / "3.png", transparency=bytes(range(256)))
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    Image.fromarray(rgb).save(folder / "4.png", exif=exif)
    rgba, deep, cmyk, palette, turned = sources.load("folder:set", image_size=8).images
    np.testing.assert_array_equal(rgba, rgb)
    np.testing.assert_array_equal(deep, np.repeat(natural(8, 8, 1)[..., None], 3, axis=-1))
    assert np.abs(cmyk.astype(int) - rgb).mean() < 3
    assert np.abs(palette.astype(int) - rgb).mean() < 6
    np.testing.assert_array_equal(turned, rgb[::-1, ::-1])


def test_grey_folder_has_one_channel(tmp_path):
    for i in range(2):
        write(tmp_path / "set" / f"{i}.png", natural(8, 8, 1, seed=i))
    grey = sources.load("folder:set", image_size=8)
    colour = sources.load("folder:set", image_size=8, channels=3)
    assert (grey.channels, colour.channels) == (1, 3)
    np.testing.assert_array_equal(np.repeat(grey.images, 3, axis=-1), colour.images)


def test_class_folders(tmp_path):
    for i, name in enumerate(["dog", "cat", "cat", "owl/barn"]):
        write(tmp_path / "set" / name / f"{i}.png", natural(8, 8, seed=i))
    data = sources.load("folder:set", image_size=8)
    assert data.class_names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 2])
    write(tmp_path / "set" / "stray.png", natural(8, 8))
    assert sources.load("folder:set", image_size=8).labels is None


def test_train_and_test_folders_share_their_classes(tmp_path):
    for i, name in enumerate(["train/cat", "train/dog", "test/dog"]):
        write(tmp_path / "set" / name / f"{i}.png", natural(8, 8, seed=i))
    test = sources.load("folder:set", split="test", image_size=8)
    assert sources.load("folder:set", image_size=8).num_examples == 2
    assert test.class_names == ("cat", "dog")
    np.testing.assert_array_equal(test.labels, [1])


def test_folder_without_a_test_split_says_how_to_make_one(tmp_path):
    write(tmp_path / "set" / "a.png", natural(8, 8))
    with pytest.raises(UserError, match="subfolders 'train' and 'test'"):
        sources.load("folder:set", split="test", image_size=8)


def test_folder_is_also_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    write(tmp_path / "shared" / "images" / "set" / "a.png", natural(8, 8))
    monkeypatch.setenv("AIGC_DATA_DIR", str(tmp_path / "shared"))
    assert sources.load("folder:set", image_size=8).num_examples == 1


def test_empty_folder(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=r"no images in .*set.*\.png"):
        sources.load("folder:set", image_size=8)


def spoiled_folder(folder, good, bad):
    for i in range(good):
        write(folder / f"good{i:03}.png", natural(8, 8, seed=i))
    whole = (folder / "good000.png").read_bytes()
    for i in range(bad):  # in turn: not an image, and an image that breaks off
        spoiled = b"<html>404</html>" if i % 2 == 0 else whole[: len(whole) // 2]
        (folder / f"bad{i}.png").write_bytes(spoiled)


@pytest.mark.parametrize("cache_bytes", [2 << 30, 0])
def test_spoiled_files_are_named_and_skipped(tmp_path, caplog, cache_bytes):
    spoiled_folder(tmp_path / "set", good=200, bad=2)
    with caplog.at_level(logging.WARNING):
        data = sources.load("folder:set", image_size=8, cache_bytes=cache_bytes)
        if cache_bytes:
            assert data.images.shape[0] == data.num_examples == 200
        else:  # the broken one is met when it is read, and the next one stands in for it
            images, rows = data.read(np.array([0, 1, 7]))
            np.testing.assert_array_equal(rows, [1, 1, 7])
            np.testing.assert_array_equal(images[2], natural(8, 8, seed=6))
    for name in ("bad0.png", "bad1.png"):
        assert caplog.text.count(f"skipped set/{name}") == 1


def test_more_than_one_percent_spoiled_fails(tmp_path):
    spoiled_folder(tmp_path / "set", good=200, bad=4)
    with pytest.raises(UserError, match=r"4 of the 204 .*bad0\.png.*bad1\.png.*bad2\.png"):
        sources.load("folder:set", image_size=8)


# --- npz ---


@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("images", "labels"), ("images", "label")])
def test_npz(tmp_path, names):
    images = np.stack([natural(6, 6, seed=i) for i in range(5)])
    labels = np.array([2, 0, 1, 1, 0])
    np.savez(tmp_path / "x.npz", **dict(zip(names, (images, labels), strict=True)))
    data = sources.load("npz:x.npz", image_size=6)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert (data.num_classes, data.labels.dtype) == (3, np.int32)


def test_npz_is_resized_as_pil_does(tmp_path):
    images = np.stack([natural(12, 16, seed=i) for i in range(3)])
    np.savez(tmp_path / "x.npz", images)
    data = sources.load("npz:x.npz", image_size=6, channels=1)
    for image, source in zip(data.images[..., 0], images, strict=True):
        square = Image.fromarray(source[:, 2:14]).resize((6, 6), Image.Resampling.BICUBIC)
        grey = np.asarray(square.convert("L"), int)
        assert np.abs(image - grey).max() <= 1


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "float32 .*save them as uint8"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, r"\(2, 4, 4, 2\)"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "no images"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8)}, "no array 'arr_0' or 'images'"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros((2, 3))}, "save 2 integers"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "the label -1"),
    ],
)
def test_wrong_npz(tmp_path, arrays, line):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=line):
        sources.load("npz:x.npz", image_size=4)


def test_npz_that_is_none(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK but no zip")
    with pytest.raises(UserError, match=r"cannot read 'x\.npz'"):
        sources.load("npz:x.npz", image_size=4)
    np.savez(tmp_path / "y.npz", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UserError, match="no split 'test'"):
        sources.load("npz:y.npz", split="test", image_size=4)


# --- tfds ---


def test_tfds_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))

    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError, match=r"unknown TFDS set 'mnis'.*Did you mean 'mnist'"):
        sources.load("tfds:mnis", image_size=8)
    with pytest.raises(UserError, match=r"'mnist' is not in .*own.*tfds build mnist"):
        sources.load("tfds:mnist", image_size=8)


def test_mnist(real_data):
    data = sources.load("tfds:mnist/test", image_size=28)
    assert (data.name, data.num_examples, data.shape) == ("tfds:mnist/test", 10_000, (28, 28, 1))
    np.testing.assert_array_equal(
        np.bincount(data.labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    )
    sliced = sources.load("tfds:mnist/test[10:30]", image_size=28)
    np.testing.assert_array_equal(sliced.images, data.images[10:30])
    with pytest.raises(UserError, match=r"no split 'trian'\. Did you mean 'train'"):
        sources.load("tfds:mnist/trian", image_size=28)
