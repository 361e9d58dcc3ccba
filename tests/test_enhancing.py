"""`aigc augment`: what is written, and that masks move with their images."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from aigc_jax import cli, enhancing
from aigc_jax.errors import UserError
from aigc_jax.writers import save_png


def photo(seed, height=40, width=32, channels=3):
    noise = np.random.default_rng(seed).normal(size=(height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0))
    return np.uint8(np.clip(128 + 60 * smooth / smooth.std(), 0, 255))


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        save_png(photo(i), tmp_path / "in" / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "in"


def images(folder):
    return {str(p.relative_to(folder)): read(p) for p in sorted(folder.rglob("*.png"))}


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_names_and_classes_are_kept(folder, tmp_path):
    out = tmp_path / "out"
    argv = ["--input", folder, "--out", out, "--ops=rotate(15),flip,color(0.2)", "--n=5"]
    assert cli.main(["augment", *map(str, argv), "--seed=3"]) == 0
    made = images(out)
    stems = [f"a/0_{i}.png" for i in range(5)] + [f"a/2_{i}.png" for i in range(5)]
    assert list(made) == stems + [f"b/1_{i}.png" for i in range(5)]
    assert all(image.shape == (40, 32, 3) for image in made.values())
    assert len({image.tobytes() for image in made.values()}) == 15
    assert read(tmp_path / "out_contact_sheet.png").shape[1] > 400
    again = tmp_path / "again"
    enhancing.augment(str(folder), again, "rotate(15),flip,color(0.2)", n=5, seed=3)
    other = tmp_path / "other"
    enhancing.augment(str(folder), other, "rotate(15),flip,color(0.2)", n=5, seed=4)
    for name, image in made.items():
        np.testing.assert_array_equal(images(again)[name], image)
        assert (images(other)[name] != image).any()


def test_one_copy_keeps_the_stem_and_does_what_is_asked(folder, tmp_path):
    enhancing.augment(str(folder), tmp_path / "out", "flip(1)")
    for name, image in images(folder).items():
        np.testing.assert_array_equal(images(tmp_path / "out")[name], image[:, ::-1])


def test_a_mask_turns_with_its_image(folder, tmp_path):
    """A mask that is a threshold of its image stays one wherever it is moved."""
    for name, image in images(folder).items():
        mask = np.uint8(255 * (image.mean(-1, keepdims=True) > 128))
        save_png(mask, tmp_path / "masks" / name)
    ops = "flip,turn,translate(0.2),brightness(0.1)"
    out = tmp_path / "out"
    enhancing.augment(str(folder), out, ops, n=4, masks=str(tmp_path / "masks"))
    moved, masks = images(out / "images"), images(out / "masks")
    assert list(moved) == list(masks) and len(masks) == 12
    for name, mask in masks.items():
        assert set(np.unique(mask)) <= {0, 255}
        # Brightness shifts all levels: the parts stay apart, if not at the same level.
        grey = moved[name].mean(-1)
        inside, outside = grey[mask > 0], grey[mask == 0]
        assert np.mean(inside) > np.mean(outside) + 30


def test_files_that_cannot_be_read_are_named_and_left_out(folder, tmp_path):
    (folder / "a" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    done = enhancing.augment(str(folder), tmp_path / "out", "flip")
    assert done.n == done.files == 3
    assert done.skipped == [str(folder / "a" / "torn.png")] and "1 files" in done.told()


@pytest.mark.parametrize(
    ("ops", "told"),
    [
        ("", "--ops is empty"),
        ("rotat(15)", "rotate"),
        ("rotate(999)", "rotate"),
        ("mixup(0.2)", "mixup"),
    ],
)
def test_ops_that_make_no_sense(folder, tmp_path, ops, told):
    with pytest.raises(UserError, match="--ops") as error:
        enhancing.augment(str(folder), tmp_path / "out", ops)
    assert told in str(error.value) and not (tmp_path / "out").exists()


def test_masks_must_fit(folder, tmp_path):
    save_png(np.zeros((8, 8, 1), np.uint8), tmp_path / "masks" / "a" / "0.png")
    with pytest.raises(UserError, match="--masks"):
        enhancing.augment(str(folder), tmp_path / "out", "flip", masks=str(tmp_path / "masks"))
