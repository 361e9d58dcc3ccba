"""`aigc degrade`'s work: what is in each file, by the degradations' and masks' own functions."""

import numpy as np
import pytest
from PIL import Image

from aigc_jax.commands import restoring
from aigc_jax.data import degrade as degradations
from aigc_jax.data import masks
from aigc_jax.degrading import degrade
from aigc_jax.errors import UserError

SIZES = {"a.png": (20, 31, 1), "deep/b.bmp": (9, 12, 3), "deep/c.png": (20, 31, 3)}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(pixels, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, **how)


@pytest.fixture
def folder(tmp_path):
    for name, shape in SIZES.items():
        save(noise(*shape), tmp_path / "in" / name)
    return tmp_path / "in"


def pixels(path):
    with Image.open(path) as image:
        assert image.mode in ("L", "RGB") and image.format == "PNG"
        found = np.asarray(image)
    return found.reshape(*found.shape[:2], -1)


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def by_hand(ops, image, *seed):
    return degradations.arrays(degradations.parse(ops), image[None], [seed])[0]


def test_each_file_has_its_own_seed(folder, tmp_path):
    done = degrade(str(folder), tmp_path / "out", "blur(1),noise(25)", seed=3)
    assert written(tmp_path / "out") == ["a.png", "deep/b.png", "deep/c.png"]
    for number, (name, shape) in enumerate(SIZES.items()):
        found = pixels((tmp_path / "out" / name).with_suffix(".png"))
        np.testing.assert_array_equal(found, by_hand("blur(1),noise(25)", noise(*shape), 3, number))
    assert done.told() == f"3 images degraded in {tmp_path / 'out'}"


def test_holes_and_their_masks(folder, tmp_path):
    out = tmp_path / "out"
    done = degrade(str(folder), out, "noise(9)", mask="strokes|half")
    for number, (name, shape) in enumerate(SIZES.items()):
        name = name.replace(".bmp", ".png")
        mask = masks.arrays("strokes|half", [[0, number]], shape[:2])[0] == 0
        np.testing.assert_array_equal(pixels(out / "masks" / name), 255 * mask)
        whole = by_hand("noise(9)", noise(*shape), 0, number)
        np.testing.assert_array_equal(pixels(out / "images" / name), np.where(mask, 128, whole))
    assert done.told().endswith(f"their masks (white = hole) in {out / 'masks'}")


def test_holes_alone(folder, tmp_path):
    degrade(str(folder / "a.png"), tmp_path / "out", mask="centre")
    assert written(tmp_path / "out") == ["images/a.png", "masks/a.png"]
    mask = pixels(tmp_path / "out/masks/a.png") == 255
    assert mask.sum() == 10 * 16
    found = pixels(tmp_path / "out/images/a.png")
    np.testing.assert_array_equal(found[~mask], noise(20, 31, 1)[~mask])


def test_files_of_other_kinds_are_told(folder, tmp_path):
    (folder / "broken.png").write_text("no image")
    save(noise(8, 8).astype(np.uint16) * 257, folder / "wide.png")
    save(noise(8, 8, 4), folder / "clear.png")
    done = degrade(str(folder), tmp_path / "out", "same")
    assert done.told() == (
        f"5 images degraded in {tmp_path / 'out'}\n"
        "Images with transparency, put on white: 1.\n"
        "Images of 16 bits, scaled to 8: 1.\n"
        "Skipped, as no readable image: 1 files."
    )
    assert done.skipped == [str(folder / "broken.png")]
    np.testing.assert_array_equal(pixels(tmp_path / "out/wide.png")[..., 0], noise(8, 8))


def test_a_broken_file_changes_no_other(folder, tmp_path):
    degrade(str(folder), tmp_path / "whole", "noise(9)")
    (folder / "a.png").write_text("no image")
    degrade(str(folder), tmp_path / "rest", "noise(9)")
    for name in ("deep/b.png", "deep/c.png"):
        found, truth = (pixels(tmp_path / out / name) for out in ("rest", "whole"))
        np.testing.assert_array_equal(found, truth)


def refused(line, source, out, *args, **kwargs):
    with pytest.raises(UserError) as error:
        degrade(str(source), out, *args, **kwargs)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not out.exists() or not any(out.rglob("*.png"))


def test_what_is_refused(folder, tmp_path):
    out = tmp_path / "out"
    refused('Give --ops, e.g. "noise(25),jpeg(40)", or --mask', folder, out)
    refused("--ops: unknown degradation 'nois'. Did you mean", folder, out, "nois(2)")
    refused("--ops: 'jpeg(0)': quality is a whole number", folder, out, "jpeg(0)")
    refused("--mask: unknown mask 'stroke'. Did you mean", folder, out, mask="stroke")
    refused("--seed -1: take one from 0 to 2147483647", folder, out, "blur(1)", seed=-1)
    refused("--input nowhere: there is no such folder", "nowhere", out, "blur(1)")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused("is there already and not empty", folder, tmp_path / "full", "blur(1)")
    refused("photos.png: this makes a folder", folder, tmp_path / "photos.png", "blur(1)")
    (tmp_path / "dots").mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "dots" / "dot.png")
    refused("an image of 1x1 pixels has no room for a mask", tmp_path / "dots", out, mask="half")


def test_no_readable_file(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    refused("1 image files, and none can be read", tmp_path, tmp_path / "out", "blur(1)")


def test_help_names_every_damage_and_hole():
    known = [*degradations.KINDS, *masks.KINDS]
    text = restoring.DEGRADE_EPILOG.replace("(", " ")
    assert {"noise", "blind", "strokes"} <= set(known)
    assert not set(known) - {"same"} - set(text.split())
