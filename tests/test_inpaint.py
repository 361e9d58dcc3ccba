"""`aigc inpaint`: what is known stays to the bit, and who fills the rest."""

import functools

import numpy as np
import pytest
import restoring_helpers as helpers
from ml_collections import ConfigDict
from PIL import Image
from restoring_helpers import by_method, close, floats, noise, picture, written

from aigc_jax import inpainting, latent_search, runs
from aigc_jax.inpainting import Inpainter, inpaint
from aigc_jax.writers import save_png

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory, compiled_once):
    """Of gated convolutions, at multiples of 4 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "colour"
    return helpers.trained(folder, {**helpers.UNET, "conv": "gated"}, "inpaint", mask="boxes")


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory, compiled_once):
    folder = tmp_path_factory.mktemp("runs") / "grey"
    return helpers.trained(folder, helpers.UNET, "inpaint", channels=1, mask="strokes")


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory, compiled_once):
    """Conditional, of grey images of 16x16."""
    fields = {"generator__width": 4, "generator__latent_dim": 8, "discriminator__width": 4}
    return helpers.run_of("digits_dcgan", tmp_path_factory.mktemp("runs") / "gan", 16, 1, **fields)


@pytest.fixture
def quick(monkeypatch):
    """A search of few steps, and what it was asked for."""
    asked, search = [], latent_search.Search

    class Quick(search):
        def __init__(self, run, **settings):
            super().__init__(run, steps=3, restarts=2, **settings)

        def __call__(self, images, masks, labels=None, seed=0, first=0):
            asked.append((images, masks, labels, seed))
            return super().__call__(images, masks, labels, seed, first)

    monkeypatch.setattr(latent_search, "Search", Quick)
    return asked


def aigc(*argv):
    helpers.aigc("inpaint", *argv)


def hole_in(height, width, seed=0):
    """(H, W) bool: a box and a few single pixels, never all nor none."""
    hole = np.random.default_rng(seed).uniform(size=(height, width)) < 0.1
    hole[height // 3 : height // 3 + 2, width // 3 : width // 2 + 1] = True
    hole[0, 0] = False
    return hole


def save_mask(hole, path):
    save_png(np.uint8(255) * hole[..., None], path)


def expected(workdir, image, hole):
    """By the method, with what is known put over it; a grey network sees channel by channel."""
    channels, known = runs.load(workdir).config.channels, np.float32(~hole)[..., None]

    def made(part):
        return by_method(workdir, floats(part) * known, known)

    if channels == image.shape[-1]:
        filled = made(image)
    elif channels == 1:
        filled = np.concatenate([made(image[..., [i]]) for i in range(3)], -1)
    else:
        filled = np.round(made(image.repeat(3, -1)) @ np.float32([0.299, 0.587, 0.114]))[..., None]
    return np.where(hole[..., None], filled, image)


def check_filled(made, image, hole):
    assert made.shape == image.shape
    np.testing.assert_array_equal(made[~hole], image[~hole])
    assert (made[hole] != image[hole]).mean() > 0.5


# ---- networks ----

SHAPES = {"a.png": (9, 14, 3), "deep/b.bmp": (8, 16, 1), "deep/c.png": (5, 7, 3)}


@pytest.mark.parametrize("kind", ["colour", "grey"])
def test_folders_of_images_and_masks(kind, request, tmp_path, capsys):
    run = request.getfixturevalue(f"{kind}_run")
    holes = {}
    for i, (name, (height, width, channels)) in enumerate(SHAPES.items()):
        save_png(noise(height, width, channels, seed=i), tmp_path / "in" / name)
        holes[name] = hole_in(height, width, seed=i)
        save_mask(holes[name], (tmp_path / "masks" / name).with_suffix(".png"))
    save_mask(hole_in(3, 3), tmp_path / "masks" / "of_no_image.png")
    capsys.readouterr()
    aigc("--workdir", run, "--input", tmp_path / "in", "--mask", tmp_path / "masks", "--out",
         tmp_path / "out")  # fmt: skip
    assert capsys.readouterr().out == f"3 images filled in {tmp_path / 'out'}\n"
    assert written(tmp_path / "out") == ["a.png", "deep/b.png", "deep/c.png"]
    for i, (name, shape) in enumerate(SHAPES.items()):
        image, made = noise(*shape, seed=i), picture((tmp_path / "out" / name).with_suffix(".png"))
        check_filled(made, image, holes[name])
        assert close(made, expected(run, image, holes[name])), name


def test_what_is_in_the_hole_plays_no_part(grey_run, tmp_path):
    hole, image = hole_in(9, 14), noise(9, 14, 1)
    save_mask(hole, tmp_path / "mask.png")
    for name, inside in (("x", 0), ("y", 255)):
        save_png(np.where(hole[..., None], np.uint8(inside), image), tmp_path / f"{name}.png")
        aigc("--workdir", grey_run, "--input", tmp_path / f"{name}.png", "--mask",
             tmp_path / "mask.png", "--out", tmp_path / "out" / f"{name}.png")  # fmt: skip
    assert written(tmp_path / "out") == ["x.png", "y.png"]
    x, y = (picture(tmp_path / "out" / f"{name}.png") for name in "xy")
    np.testing.assert_array_equal(x, y)


def test_one_mask_for_all_of_a_folder(grey_run, tmp_path):
    """Of any kind of file: grey of 16 bits here, white above the middle."""
    hole = hole_in(8, 8)
    levels = np.where(hole, 33000, 32000).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "mask.png")
    images = [noise(8, 8, 1, seed=i) for i in range(3)]
    for i, image in enumerate(images):
        save_png(image, tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "3.png").write_text("no image")
    done = inpaint(grey_run, str(tmp_path / "in"), str(tmp_path / "mask.png"), tmp_path / "out")
    assert done.n == 3 and done.told().splitlines()[1:] == [
        "Skipped, as no readable image: 1 files."
    ]
    for i, image in enumerate(images):
        made = picture(tmp_path / "out" / f"{i}.png")
        check_filled(made, image, hole)
        assert close(made, expected(grey_run, image, hole))


def test_a_mask_is_turned_as_its_image_is(grey_run, tmp_path):
    """By EXIF, from one camera; and 16 bits are told."""
    image, hole, exif = noise(8, 12, 1), hole_in(8, 12), Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    for name, pixels in (("x", image[..., 0]), ("mask", np.uint8(255) * hole)):
        Image.fromarray(np.rot90(pixels)).save(tmp_path / f"{name}.png", exif=exif)
    inpaint(grey_run, str(tmp_path / "x.png"), str(tmp_path / "mask.png"), tmp_path / "y.png")
    made = picture(tmp_path / "y.png")
    check_filled(made, image, hole)
    assert close(made, expected(grey_run, image, hole))
    deep = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png", exif=Image.Exif())
    save_mask(hole, tmp_path / "upright.png")
    paths = (tmp_path / "deep.png", tmp_path / "upright.png", tmp_path / "z.png")
    done = inpaint(grey_run, *map(str, paths))
    assert "Images of 16 bits, scaled to 8: 1." in done.told()
    np.testing.assert_array_equal(picture(tmp_path / "z.png"), made)


def test_large_images_go_through_in_tiles(grey_run):
    image, hole = noise(40, 40, 1), hole_in(40, 40)
    made = Inpainter.of_run(runs.load(grey_run), tile=24).fill(image, hole)
    check_filled(made, image, hole)


# ---- searches in latents ----


def test_a_generator_fills_images_of_its_size(gan_run, quick, tmp_path):
    """A colour image channel by channel, all of a folder at once."""
    images = {"a.png": noise(16, 16, 1), "b.png": noise(16, 16, 3)}
    for i, (name, image) in enumerate(images.items()):
        save_png(image, tmp_path / "in" / name)
        save_mask(hole_in(16, 16, seed=i), tmp_path / "masks" / name)
    flags = ["--workdir", gan_run, "--input", tmp_path / "in", "--mask", tmp_path / "masks"]
    aigc(*flags, "--out", tmp_path / "out", "--label", 3, "--seed", 5)
    for i, (name, image) in enumerate(images.items()):
        check_filled(picture(tmp_path / "out" / name), image, hole_in(16, 16, seed=i))
    ((stack, masks, labels, seed),) = quick
    parts = [images["a.png"], *(images["b.png"][..., [c]] for c in range(3))]
    np.testing.assert_array_equal(stack, np.stack(parts))
    holes = [hole_in(16, 16, seed=i) for i in (0, 1, 1, 1)]
    np.testing.assert_array_equal(masks[..., 0], 1 - np.float32(holes))
    assert labels.tolist() == [3] * 4 and seed == 5
    search = latent_search.Search(runs.load(gan_run), batch_size=4)
    whole = search(stack, masks, np.full(4, 3), 5)
    assert close(picture(tmp_path / "out" / "a.png"), whole[0])
    assert close(picture(tmp_path / "out" / "b.png"), np.concatenate(list(whole[1:]), -1))


def test_without_a_label_classes_are_tried(gan_run, quick, tmp_path, monkeypatch):
    """And a single image is filled as one, not as part of a large batch."""
    save_png(noise(16, 16, 1), tmp_path / "x.png")
    save_mask(hole_in(16, 16), tmp_path / "mask.png")
    sizes, search = [], latent_search.Search

    def told(run, **settings):
        sizes.append(settings["batch_size"])
        return search(run, **settings)

    monkeypatch.setattr(latent_search, "Search", told)
    aigc("--workdir", gan_run, "--input", tmp_path / "x.png", "--mask", tmp_path / "mask.png",
         "--out", tmp_path / "y.png")  # fmt: skip
    assert quick[0][2] is None and sizes == [1]
    check_filled(picture(tmp_path / "y.png"), noise(16, 16, 1), hole_in(16, 16))


def test_many_images_are_searched_in_parts(gan_run, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(inpainting, "_SEARCHED", 2)
    for i in range(3):
        save_png(noise(16, 16, 1, seed=i), tmp_path / "in" / f"{i}.png")
    save_mask(hole_in(16, 16), tmp_path / "mask.png")
    inpaint(gan_run, str(tmp_path / "in"), str(tmp_path / "mask.png"), tmp_path / "out")
    assert [len(images) for images, *_ in quick] == [2, 1]
    for i in range(3):
        made = picture(tmp_path / "out" / f"{i}.png")
        check_filled(made, noise(16, 16, 1, seed=i), hole_in(16, 16))


# ---- mistakes ----

MISTAKES = {
    "no run": ("--workdir={empty}", ["{empty}", "config.json"]),
    "of another method": ("--workdir={judge}", ["'classifier'", "no latents"]),
    "without holes": ("--workdir={restores}", ["{restores} was trained without holes"]),
    "no such step": ("--step=7", ["step 7"]),
    "a network's label": ("--label=1", ["--label 1", "knows no classes"]),
    "another label": ("--workdir={gan} --label=10", ["--label 10", "0 to 9"]),
    "seed": ("--seed=-1", ["--seed -1", "0 to 2147483647"]),
    "tile": ("--tile=7", ["--tile 7", "8 or more"]),
    "another size than the generator's": ("--workdir={gan}", ["in/x.png is 6x4", "16x16 alone"]),
    "no such input": ("--input={nowhere}", ["{nowhere}", "no such"]),
    "no images": ("--input={empty}", ["{empty}", "no images"]),
    "none readable": ("--input={bad}", ["--input {bad}", "1 image files", "none"]),
    "many to one file": ("--input={two} --out={new}.png", ["2 images go to a folder"]),
    "taken": ("--out={in}", ["{in}", "not empty"]),
    "no such mask": ("--mask={nowhere}", ["--mask {nowhere}", "no such"]),
    "no readable mask": ("--mask={bad}", ["--mask {bad}", "1 image files", "none"]),
    "a missing mask": ("--input={two}", ["--mask {masks} has no image of the name of a.png"]),
    "a mask's size": ("--mask={other}/x.png", ["{other}/x.png is 5x4", "6x4"]),
    "no hole": ("--mask={black}/x.png", ["{black}/x.png is nowhere white", "white is the hole"]),
    "all hole": ("--mask={white}", ["{white}/x.png is all white", "nothing", "black what is kept"]),
    "a torn mask": ("--mask={torn}/x.bmp", ["--mask: {torn}/x.bmp can't be read"]),
    "one of many has no hole": ("--input={two} --mask={second_black}", ["b.png is nowhere white"]),
}


@pytest.fixture(scope="module")
def places(colour_run, gan_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_text("no image")
    for name in ("in/x", "two/a", "two/b"):
        save_png(noise(4, 6, 3), folder / f"{name}.png")
    masks = {"masks/x": hole_in(4, 6), "other/x": hole_in(4, 5), "black/x": np.zeros((4, 6), bool),
             "white/x": np.ones((4, 6), bool), "second_black/a": hole_in(4, 6),
             "second_black/b": np.zeros((4, 6), bool), }  # fmt: skip
    for name, hole in masks.items():
        save_mask(hole, folder / f"{name}.png")
    save_mask(hole_in(4, 6), folder / "torn" / "x.bmp")
    torn = folder / "torn" / "x.bmp"
    torn.write_bytes(torn.read_bytes()[:-9])
    helpers.planned(folder / "judge", "digits_classifier")
    helpers.planned(folder / "restores", "bsd_dncnn")
    named = {path.name: path for path in folder.iterdir()}
    named |= {"nowhere": folder / "nowhere", "new": folder / "new"}
    return {**named, "run": colour_run, "gan": gan_run}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, places, tmp_path, capsys):
    flags, words = MISTAKES[name]
    argv = flags.format(**places).split()
    usual = {"--workdir": places["run"], "--input": places["in"], "--mask": places["masks"],
             "--out": tmp_path / "out"}  # fmt: skip
    given = {each.partition("=")[0] for each in argv}
    argv += [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    helpers.mistake("inpaint", argv, [word.format(**places) for word in words], capsys)
    assert not list(tmp_path.rglob("*.png")) and not places["new"].with_suffix(".png").exists()


def test_latents_of_a_vae_are_searched_too(quick, tmp_path):
    """By its prior, as it has no discriminator."""
    plain = ConfigDict({"name": "vae_mlp", "width": 8, "depth": 1})
    fields = {"encoder": plain, "decoder": plain}
    run = helpers.run_of("digits_cvae", tmp_path / "run", 16, 1, **fields)
    save_png(noise(16, 16, 1), tmp_path / "x.png")
    save_mask(hole_in(16, 16), tmp_path / "mask.png")
    told = functools.partial(inpaint, run, str(tmp_path / "x.png"), str(tmp_path / "mask.png"))
    assert told(tmp_path / "y.png").told() == f"1 images filled in {tmp_path / 'y.png'}"
    check_filled(picture(tmp_path / "y.png"), noise(16, 16, 1), hole_in(16, 16))
