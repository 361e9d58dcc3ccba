"""Images of any path against Pillow and numpy, and the line that each kind of bad input gets."""

import logging
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aigc_jax.data.dataset import subset
from aigc_jax.data.images import is_statistics, open_images
from aigc_jax.errors import UserError


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def natural(height, width, channels=3, seed=0):
    """A smooth picture: noise, blurred."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    image = Image.fromarray(noise[..., 0] if channels == 1 else noise)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)))


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)


def numbered(folder, count, size=(6, 8)):
    """`count` PNGs of their own; returns their pixels."""
    pictures = [natural(*size, seed=i) for i in range(count)]
    for i, image in enumerate(pictures):
        write(folder / f"{i:03}.png", image)
    return pictures


def zipped(path, folder):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))


def by_pil(path, mode="RGB"):
    """(H, W, C) as Pillow reads and converts a file."""
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        pixels = np.asarray(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def same(found, expected):
    found = list(found)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# --- where images lie ---


def test_folder_and_zip_in_the_order_of_relative_paths(tmp_path):
    folder = tmp_path / "set"
    # Sorted by folder, then by name: "a-b.png" as a string would come before "a/z.png".
    names = ["a/b.TIFF", "a/z.png", "a-b.PNG", "b.Jpeg", "c.gif", "d.webp", "e.bmp", "f.tif"]
    for seed, name in enumerate(names):
        write(folder / name, natural(7, 9, seed=seed))
    write(folder / ".hidden" / "h.png", natural(7, 9))
    write(folder / "a" / "._z.png", natural(7, 9))
    (folder / "notes.txt").write_text("no image")
    zipped(tmp_path / "set.ZIP", folder)
    truth = [by_pil(folder / name) for name in names]
    for path in ("set", str(folder), "folder:set", "set.ZIP", "zip:set.ZIP"):
        images = open_images(path)
        assert (images.n, len(images), images.size) == (8, 8, (7, 9))
        same(images.read(), truth)
        same(images.read(), truth)  # any number of times
        assert images.failed == []


def test_links_are_followed_but_not_in_circles(tmp_path):
    pictures = numbered(tmp_path / "elsewhere", 2)
    for name, target in (
        ("a/all", "elsewhere"),
        ("a/up", "set"),
        ("a/b", "set/b"),
        ("b/a", "set/a"),
    ):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / target, target_is_directory=True)
    same(open_images("set/a").read(), pictures)
    assert open_images("set").n == 2 * 2  # in a, and in a of b


def test_folders_of_the_data_folder(tmp_path, monkeypatch):
    numbered(tmp_path / "shared" / "images" / "photos", 2)
    monkeypatch.setenv("AIGC_DATA_DIR", str(tmp_path / "shared"))
    assert open_images("photos").name == "folder:photos"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 6, 1), (5, 4, 6, 3), (5, 4, 6, 4)])
def test_npz_is_converted_as_pil_converts_images(tmp_path, save, channels, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    save(tmp_path / "x.npz", array)
    mode = "L" if channels == 1 else "RGB"
    truth = [Image.fromarray(x.squeeze()).convert(mode) for x in array]
    truth = np.stack([np.asarray(x).reshape(4, 6, channels) for x in truth])
    images = open_images("x.npz", channels=channels)
    assert (images.name, images.n, images.size) == ("npz:x.npz", 5, (4, 6))
    same(images.read(), truth)
    (first, ones), (last, mask) = images.batches(3)
    np.testing.assert_array_equal(first, truth[:3])
    np.testing.assert_array_equal(last, [*truth[3:], np.zeros_like(truth[0])])
    assert ones.tolist() == [1, 1, 1] and mask.tolist() == [1, 1, 0]


def test_npz_by_its_other_key_in_fortran_order_and_beside_statistics(tmp_path):
    array = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8))
    np.savez(tmp_path / "x.npz", images=array, mu=np.zeros(3), sigma=np.eye(3))
    assert is_statistics("x.npz")
    same(open_images("npz:x.npz").read(), array)
    taken = subset(5, 3)
    same(open_images("npz:x.npz", num=3).read(), array[taken])
    (_, ones), (last, mask) = open_images("npz:x.npz", num=3).batches(2)
    np.testing.assert_array_equal(last, [array[taken[2]], np.zeros_like(array[2])])
    assert ones.tolist() == [1, 1] and mask.tolist() == [1, 0]


def test_npz_is_not_held_in_memory(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "x.npz", array)
    tracemalloc.start()
    total = sum(int(batch.sum()) for batch, _ in open_images("x.npz").batches(16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == array.sum(dtype=np.int64)
    assert peak < array.nbytes / 4


def test_digits(caplog):
    from sklearn.datasets import load_digits

    images = open_images("digits/all")
    assert (images.name, images.n, images.size) == ("digits/all", 1797, (8, 8))
    truth = load_digits().images[..., None].repeat(3, -1) * 255 / 16
    np.testing.assert_allclose(np.stack(list(images.read())), truth, atol=0.5)
    assert open_images("digits").n == 1497 and open_images("digits/test", num=10).n == 10
    assert caplog.text.count("1797 of 1797 images are grey, repeated over 3 channels") == 1


def test_tfds_as_it_is(tmp_path):
    """Sets of several sizes are not cropped; one of a single size says so."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    pictures = [natural(10 + i, 12, seed=i) for i in range(5)]

    def store(name, images, shape):
        features = {
            "picture": tfds.features.Image(shape=shape),
            "label": tfds.features.Scalar(tf.int64),
        }
        examples = tf.data.Dataset.from_generator(
            lambda: ({"picture": image, "label": 0} for image in images),
            output_signature={
                "picture": tf.TensorSpec((None, None, 3), tf.uint8),
                "label": tf.TensorSpec((), tf.int64),
            },
        )
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            data_dir=tmp_path,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(features),
            split_datasets={"train": examples},
        )

    store("ragged", pictures, (None, None, 3))
    store("even", pictures[:1] * 3, (10, 12, 3))
    ragged = open_images("tfds:ragged", data_dir=str(tmp_path))
    assert (ragged.name, ragged.n, ragged.size) == ("tfds:ragged/train", 5, None)
    same(ragged.read(), pictures)
    with pytest.raises(UserError, match=r"record 0 is 10x12x3, record 1 is 11x12x3"):
        list(ragged.batches(2))
    part = open_images("tfds:ragged/train[1:]", num=2, channels=1, data_dir=str(tmp_path))
    luma = [np.asarray(Image.fromarray(x).convert("L"))[..., None] for x in pictures]
    same(part.read(), [luma[1 + i] for i in subset(4, 2)])
    even = open_images("tfds:even", data_dir=str(tmp_path))
    assert even.size == (10, 12)
    same((batch for batch, _ in even.batches(3)), [np.stack(pictures[:1] * 3)])


def test_real_sets(tmp_path):
    if not os.environ.get("AIGC_DATA_DIR"):
        pytest.skip("AIGC_DATA_DIR is not set: no MNIST to read")
    import tensorflow_datasets as tfds

    root = os.path.join(os.environ["AIGC_DATA_DIR"], "tfds")
    truth = tfds.load("mnist", split="test[:2000]", data_dir=root)
    images = open_images("tfds:mnist/test[:2000]", num=20, channels=1)
    assert images.n == 20 and images.size == (28, 28)
    same(images.read(), [list(truth.as_numpy_iterator())[i]["image"] for i in subset(2000, 20)])
    photos = open_images("bsd", num=4)
    assert photos.n == 4 and {x.shape[2] for x in photos.read()} == {3}


def test_no_tensorflow(tmp_path):
    numbered(tmp_path / "set", 2)
    program = (
        "import sys; from aigc_jax.data.images import open_images; "
        "assert len(list(open_images('set').read())) == 2; "
        "assert not {'tensorflow', 'sklearn', 'jax'} & set(sys.modules), sys.modules.keys()"
    )
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": path}
    )


# --- what Pillow converts, and what is said of it ---


def png(rows, colour_type, depth=16):
    """A PNG written by hand: Pillow writes no 16-bit colour."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def odd_images(folder):
    """One image of every kind that takes more than reading; (name, what is said, RGB, L)."""
    rgb, deep = natural(8, 8), np.random.default_rng(1).integers(0, 65536, (8, 8), np.uint16)
    deep[0, :3] = 0, 255, 65535
    alpha = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    turned = Image.Exif()
    turned[0x0112] = 6
    palette, second = Image.fromarray(rgb).quantize(16), Image.fromarray(255 - rgb)
    write(folder / "alpha.png", np.dstack([rgb, alpha]))
    write(folder / "alpha_grey.png", Image.fromarray(np.dstack([rgb[..., 0], alpha]), "LA"))
    write(folder / "bits.png", Image.fromarray(rgb).convert("1"))
    write(folder / "cmyk.jpg", Image.fromarray(rgb).convert("CMYK"))
    write(folder / "deep.png", deep)
    write(folder / "deep.tif", deep)
    (folder / "deep_colour.png").write_bytes(png(np.dstack([deep, deep.T, deep[::-1]]), 2))
    write(folder / "exif.jpg", rgb, exif=turned)
    write(folder / "frames.gif", palette, save_all=True, append_images=[second])
    write(folder / "frames.webp", rgb, save_all=True, append_images=[second], lossless=True)
    write(folder / "grey.png", rgb[..., 0])
    write(folder / "palette.png", palette)
    write(folder / "palette_alpha.png", palette, transparency=bytes(range(16)))
    return deep


SAID = {  # what is said at channels=3, and of which images
    "are grey, repeated": 6 - 1,
    "have an alpha channel, which is dropped": 3,
    "have a palette": 3,
    "are CMYK, converted without a colour profile": 1,
    "have 16 bits, scaled to 8": 2,
    "have 16 bits a channel, of which the upper 8": 1,
    "have an EXIF orientation, which is not applied": 1,
    "have several frames: the first is read": 2,
}


@pytest.mark.parametrize("channels", [1, 3])
def test_odd_images_are_converted_as_pil_converts_them(tmp_path, channels, caplog):
    deep = np.round(odd_images(tmp_path / "set") / 257).astype(np.uint8)
    mode = "L" if channels == 1 else "RGB"
    images = open_images("set", channels=channels)
    with caplog.at_level(logging.WARNING):
        found = list(images.read())
    paths = sorted((tmp_path / "set").iterdir())
    for path, image in zip(paths, found, strict=True):
        truth = by_pil(path, mode)
        if path.name in ("deep.png", "deep.tif"):  # Pillow clips these
            truth = deep[..., None].repeat(channels, -1)
        np.testing.assert_array_equal(image, truth, err_msg=path.name)
    lines = [r.getMessage() for r in caplog.records]
    for said, count in SAID.items():
        if channels == 3 or "grey" not in said:
            assert [f"folder:set: {count} of 13 images {said}" in x for x in lines].count(True) == 1
    caplog.clear()
    list(images.read())
    assert not caplog.records  # said once


def test_plain_images_are_read_without_a_word(tmp_path, caplog):
    numbered(tmp_path / "set", 2)
    write(tmp_path / "set" / "x.jpg", natural(6, 8))
    list(open_images("set").read())
    assert not caplog.records


# --- reading ---


def test_batches_are_stacks_with_masks(tmp_path):
    pictures = numbered(tmp_path / "set", 10)
    images = open_images("set")
    for transform in (None, lambda x: x[::2].astype(np.float32) / 2):
        truth = np.stack([transform(x) if transform else x for x in pictures])
        found = list(images.batches(4, transform))
        assert [x.shape[0] for x, _ in found] == [4, 4, 4]
        assert {(x.dtype, m.dtype) for x, m in found} == {(truth.dtype, np.dtype(np.float32))}
        np.testing.assert_array_equal(np.concatenate([x[m > 0] for x, m in found]), truth)
        assert found[-1][1].tolist() == [1, 1, 0, 0] and not found[-1][0][2:].any()
        same(images.read(transform, threads=3), truth)


def test_num_is_drawn_alike_each_time(tmp_path):
    pictures = numbered(tmp_path / "set", 5)
    images = open_images("set", num=3)
    assert images.n == 3
    same(images.read(), [pictures[i] for i in subset(5, 3)])
    some = subset(1000, 100)  # of class folders or of what alternates: a bit of everything
    assert (np.diff(some) > 0).all() and set(some % 10) == set(some // 100) == set(range(10))
    assert open_images("set", num=6).n == 5
    with pytest.raises(UserError, match="num must be at least 1, not 0"):
        open_images("set", num=0)


def test_mixed_sizes(tmp_path):
    numbered(tmp_path / "set", 3)
    write(tmp_path / "set" / "other.png", natural(9, 7))
    images = open_images("set")
    assert images.size is None
    with pytest.raises(UserError, match=r"000\.png is 6x8, other\.png is 9x7.*resize"):
        images.batches(2)
    assert sum(mask.sum() for _, mask in images.batches(3, lambda x: x[:4, :4])) == 4
    with pytest.raises(UserError, match=r"000\.png is 6x8x3, other\.png is 9x7x3"):
        list(images.batches(2, lambda x: x))  # a transform that changes nothing
    assert [x.shape for x in images.read()] == [(6, 8, 3)] * 3 + [(9, 7, 3)]


@pytest.mark.parametrize("ahead", ["read", "batches"])
def test_look_ahead_is_bounded_and_ends_with_the_reader(tmp_path, ahead):
    numbered(tmp_path / "set", 60)
    seen, before = [], threading.active_count()

    def transform(image):
        seen.append(1)
        return image

    images = open_images("set")
    reading = (
        images.read(transform, threads=2) if ahead == "read" else images.batches(8, transform, 2)
    )
    next(reading)
    deadline = time.monotonic() + 5
    most = 1 + 8 if ahead == "read" else 8 + 8
    while len(seen) < most and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(seen) == most  # what the caller has, and four for each thread or one batch
    reading.close()
    assert threading.active_count() == before


def test_a_reader_that_ends_early_leaves_the_rest_alone(tmp_path):
    numbered(tmp_path / "set", 60)
    seen = []

    def transform(image):
        seen.append(time.sleep(0.02))
        return image

    reading = open_images("set").batches(25, transform, threads=1)
    next(reading)
    reading.close()
    assert len(seen) < 40  # of the 50 asked for


def test_order_does_not_depend_on_how_long_an_image_takes(tmp_path):
    pictures = numbered(tmp_path / "set", 12)
    rests = iter(np.random.default_rng(0).random(12) / 100)

    def transform(image):
        time.sleep(next(rests))
        return image

    same(open_images("set").read(transform, threads=4), pictures)


def test_errors_of_a_transform_are_not_the_files_fault(tmp_path):
    numbered(tmp_path / "set", 3)
    images = open_images("set")
    with pytest.raises(ZeroDivisionError):
        list(images.read(lambda x: 1 // 0))
    assert images.failed == []


# --- bad input ---


def spoiled(folder, good):
    """So many good images, one that is none and one that breaks off."""
    pictures = numbered(folder, good)
    (folder / "000a.png").write_bytes(b"<html>404</html>")
    (folder / "001a.png").write_bytes((folder / "001.png").read_bytes()[:-40])
    return pictures


@pytest.mark.parametrize("path", ["set", "set.zip"])
def test_unreadable_images_are_named_and_left_out(tmp_path, caplog, path):
    pictures = spoiled(tmp_path / "set", 210)
    zipped(tmp_path / "set.zip", tmp_path / "set")
    images = open_images(path)
    assert images.n == 212 and images.size == (6, 8)
    assert images.failed == ["000a.png"]  # the other one has a header
    for _ in range(2):
        found = list(images.batches(50))
        same(np.concatenate([x[m > 0] for x, m in found]), pictures)
    assert [int(m.sum()) for _, m in found] == [50, 50, 50, 50, 10]
    assert images.failed == ["000a.png", "001a.png"]
    assert caplog.text.count("skipped 000a.png (unreadable: 1): no image format") == 1
    assert caplog.text.count("skipped 001a.png (unreadable: 2): image file is truncated") == 1


def test_more_than_one_percent_fails(tmp_path):
    spoiled(tmp_path / "set", 150)
    with pytest.raises(UserError, match=r"2 of the 152 files.*1%: 000a\.png, 001a\.png \(no image"):
        list(open_images("set").read())
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of the 1 files .*a\.png"):
        _ = open_images("few").size


def test_monstrous_images_are_named(tmp_path, monkeypatch):
    numbered(tmp_path / "set", 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        with pytest.raises(UserError, match=r"000\.png.*48 pixels\) exceeds limit of 40"):
            list(open_images("set").read())
    assert not said


def test_float_and_32_bit_files_are_unreadable(tmp_path):
    write(tmp_path / "float" / "a.tif", np.ones((4, 4), np.float32))
    write(tmp_path / "wide" / "a.tif", np.full((4, 4), 1 << 20, np.int32))
    with pytest.raises(UserError, match="float pixels: save 8 bits"):
        list(open_images("float").read())
    with pytest.raises(UserError, match=r"1048576.*not in 16 bits"):
        list(open_images("wide").read())


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "float images (float32): save uint8"),
        ({"images": np.zeros((2, 4, 4, 3), np.int64)}, "int64 images: save uint8"),
        ({"images": np.array([np.zeros(2), None], object)}, "Python objects: save one uint8 array"),
        ({"images": np.zeros((4, 4), np.uint8)}, "an array (4, 4): save images as (N, H, W, C)"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, "images of 2 channels"),
        ({"images": np.zeros((2, 4, 4, 5), np.uint8)}, "images of 5 channels"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, "channels last: transpose(0, 2, 3, 1)"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "no images"),
        ({"x": np.zeros((2, 4, 4, 3), np.uint8)}, "no array 'arr_0' or 'images' (it holds x)"),
        ({"mu": np.zeros(2), "sigma": np.eye(2)}, "statistics (mu, sigma), where images"),
    ],
)  # fmt: skip
def test_wrong_npz(tmp_path, arrays, line):
    np.savez(tmp_path / "x.npz", **arrays)
    assert is_statistics("x.npz") == is_statistics("npz:x.npz") == ("mu" in arrays)
    with pytest.raises(UserError) as error:
        open_images("x.npz")
    assert "'x.npz'" in str(error.value) and line in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_npz(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", array)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[5000] ^= 255  # a pixel: the archive's checksum tells
    (tmp_path / "y.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"'y\.npz' is damaged: Bad CRC-32"):
        list(open_images("y.npz").read())
    (tmp_path / "z.npz").write_bytes(data[:5000])
    with pytest.raises(UserError, match=r"cannot read 'z\.npz' as an \.npz file"):
        open_images("z.npz")
    assert not is_statistics("z.npz") and not is_statistics("nowhere.npz")


def test_wrong_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK, but no archive")
    with pytest.raises(UserError, match=r"cannot read 'a\.zip' as a \.zip file"):
        open_images("a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
        archive.writestr("__MACOSX/._a.png", "no image")
    with pytest.raises(UserError, match=r"no images in zip:b\.zip: looked for \.bmp"):
        open_images("b.zip")
    numbered(tmp_path / "set", 1)
    zipped(tmp_path / "c.zip", tmp_path / "set")
    data = bytearray((tmp_path / "c.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of a password, which zipfile cannot set
    (tmp_path / "d.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"'d\.zip' is encrypted \(000\.png\): unpack it"):
        open_images("d.zip")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("samples", "no images at 'samples'. Did you mean 'sample'?"),
        ("sample/fake.zip", "Did you mean 'sample/fakes.zip'?"),
        ("npz:fakes.npz", "no images at 'npz:fakes.npz'. Did you mean 'fake.npz'?"),
        ("folder:sampel", "Did you mean 'sample'?"),
        ("tdfs:flowers", "Did you mean 'tfds:flowers'?"),
        ("flowers", "Did you mean 'tfds:flowers'?"),
        ("digit", "Did you mean 'digits'?"),
        ("digits/tset", "digits has no split 'tset'. Did you mean 'test'?"),
        ("a.png", "'a.png' is one file: give a folder, a .zip or an .npz of images"),
        ("", "no images at ''. Give a folder, a .zip"),
        ("tfds:", "no images at 'tfds:'"),
        ("empty", "no images in folder:empty: looked for .bmp"),
    ],
)
def test_wrong_paths(tmp_path, monkeypatch, path, line):
    monkeypatch.setenv("AIGC_DATA_DIR", str(tmp_path / "shared"))
    (tmp_path / "shared" / "tfds" / "flowers" / "1.0.0").mkdir(parents=True)
    (tmp_path / "shared" / "tfds" / "flowers" / "1.0.0" / "features.json").write_text("{}")
    for name in ("sample/fakes.zip", "fake.npz", "a.png", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as error:
        open_images(path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_channels_must_be_one_or_three():
    with pytest.raises(UserError, match="channels must be 1 or 3, not 4"):
        open_images("digits", channels=4)
