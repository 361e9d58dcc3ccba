"""`aigc restore`: what is in each file it writes, by runs, published weights and filters."""

import json
import re

import jax
import numpy as np
import pytest
import restoring_helpers as helpers
from PIL import Image
from restoring_helpers import by_method, close, floats, noise, picture, psnr, smooth, written

from aigc_jax import filters, restoration, runs
from aigc_jax.data import degrade
from aigc_jax.restoration import Restorer, restore
from aigc_jax.types import to_uint8
from aigc_jax.writers import save_png

pytestmark = pytest.mark.usefixtures("compiled_once")

FILTERS = ("nlmeans", "gaussian", "bilateral", "median", "tv")


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory, compiled_once):
    """Works at multiples of 4 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "colour"
    return helpers.trained(folder, helpers.UNET, degrade="noise(0..55)")


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory, compiled_once):
    folder = tmp_path_factory.mktemp("runs") / "grey"
    return helpers.trained(folder, helpers.DNCNN, channels=1, degrade="noise(25)")


def aigc(*argv):
    helpers.aigc("restore", *argv)


def expected(workdir, image):
    """A grey network sees channel by channel; one for colour three equal ones."""
    channels = runs.load(workdir).config.channels
    image = floats(image) if image.dtype == np.uint8 else image
    if channels == image.shape[-1]:
        return by_method(workdir, image)
    if channels == 1:
        return np.concatenate([by_method(workdir, image[..., [i]]) for i in range(3)], -1)
    made = by_method(workdir, image.repeat(3, -1))
    return np.round(made @ np.float32([0.299, 0.587, 0.114]))[..., None].astype(np.uint8)


# ---- runs ----

SIZES = [(1, 1), (2, 3), (5, 7), (8, 8), (9, 14), (6, 8)]


@pytest.mark.parametrize("kind", ["colour", "grey"])
def test_any_size_grey_or_colour_stays_so(kind, request, tmp_path, capsys):
    run = request.getfixturevalue(f"{kind}_run")
    images = {f"{'a' if i % 2 else 'b/c'}/{i}.bmp": noise(*size, 1 + i // 2 % 2 * 2, seed=i)
              for i, size in enumerate(SIZES)}  # fmt: skip
    for name, image in images.items():
        save_png(image, tmp_path / "in" / name)
    capsys.readouterr()
    aigc("--workdir", run, "--input", tmp_path / "in", "--out", tmp_path / "out")
    assert capsys.readouterr().out == f"6 images restored in {tmp_path / 'out'}\n"
    names = {name: name.replace(".bmp", ".png") for name in images}
    assert written(tmp_path / "out") == sorted(names.values())
    for name, image in images.items():
        made = picture(tmp_path / "out" / names[name])
        assert close(made, expected(run, image)), (name, image.shape)
        assert abs(np.int32(made) - image).max() > 1


def test_large_images_go_through_in_tiles(grey_run, tmp_path):
    """A DnCNN of three layers sees three pixels far: but for tiles' borders it is the same."""
    image = noise(50, 70, 1)
    save_png(image, tmp_path / "x.png")
    aigc("--workdir", grey_run, "--input", tmp_path / "x.png", "--out", tmp_path / "out",
         "--tile", 32)  # fmt: skip
    made, whole = picture(tmp_path / "out" / "x.png"), expected(grey_run, image)
    off = abs(np.int32(made) - whole) > 1
    assert made.shape == whole.shape and off.mean() < 0.2
    assert not off[:15, :25].any()  # before the second tile begins


def test_files_of_other_kinds_are_told(colour_run, tmp_path, capsys, caplog):
    grey, colour, clear = noise(9, 6, 1), noise(9, 6, 3, seed=1), noise(9, 6, 4, seed=2)
    clear[..., 3] = 0
    folder = tmp_path / "in"
    save_png(grey, folder / "grey.png")
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    turned, exif = Image.fromarray(np.rot90(colour)), Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    turned.save(folder / "turned.png", exif=exif)
    Image.fromarray(clear).save(folder / "clear.png")
    (folder / "bad.jpg").write_text("no image")
    capsys.readouterr()
    aigc("--workdir", colour_run, "--input", folder, "--out", tmp_path / "out")
    white = np.full_like(colour, 255)
    reads = {"grey": grey, "deep": grey, "turned": colour, "clear": white}
    assert written(tmp_path / "out") == sorted(f"{name}.png" for name in reads)
    for name, image in reads.items():
        assert close(picture(tmp_path / "out" / f"{name}.png"), expected(colour_run, image)), name
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("4 images restored") and set(told[1:]) == {
        "Images of 16 bits, scaled to 8: 1.",
        "Images with transparency, put on white: 1.",
        "Skipped, as no readable image: 1 files.",
    }
    assert "bad.jpg" in caplog.text


def test_a_torn_file_is_left_out_and_changes_no_other(grey_run, tmp_path):
    """Torn in its header or behind it; image i keeps its own noise."""
    for i, kind in enumerate(("png", "bmp", "png", "png")):
        save_png(noise(8, 8, 1, seed=i), tmp_path / "in" / f"{i}.{kind}")
    options = {"workdir": grey_run, "ops": "noise(9)"}
    restore(str(tmp_path / "in"), tmp_path / "whole", **options)
    torn = [tmp_path / "in" / name for name in ("0.png", "1.bmp")]
    for path, size in zip(torn, (20, -9), strict=True):
        path.write_bytes(path.read_bytes()[:size])
    done = restore(str(tmp_path / "in"), tmp_path / "rest", **options)
    assert done.n == 2 and done.skipped == list(map(str, torn))
    assert written(tmp_path / "rest") == ["2.png", "3.png", "scores.json"]
    for name in ("2.png", "3.png"):
        assert (picture(tmp_path / "rest" / name) == picture(tmp_path / "whole" / name)).all()


# ---- published weights ----


@pytest.fixture(scope="module", params=["dncnn", "merged_dncnn"])
def published(request, tmp_path_factory):
    """(file, what PyTorch writes of an image)"""
    torch = pytest.importorskip("torch")
    import restorer_twins

    torch.manual_seed(0)
    net = getattr(restorer_twins, request.param)(1, 5, 4).eval()
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(net.state_dict(), path)

    def write(image):
        x = torch.from_numpy(image[..., 0])[None, None].float() / 255
        with torch.no_grad():
            y = (x - net(x)).clamp(0, 1)[0, 0].numpy()
        return np.round(255 * y)[..., None].astype(np.uint8)

    return path, write


def test_published_weights_write_what_pytorch_would(published, tmp_path):
    path, write = published
    grey, colour = noise(13, 9, 1), noise(13, 9, 3, seed=1)
    save_png(grey, tmp_path / "in" / "grey.png")
    save_png(colour, tmp_path / "in" / "colour.png")
    aigc("--weights", path, "--input", tmp_path / "in", "--out", tmp_path / "out")
    made = picture(tmp_path / "out" / "grey.png")
    assert close(made, write(grey)) and abs(np.int32(made) - grey).mean() > 5
    by_channel = np.concatenate([write(colour[..., [i]]) for i in range(3)], -1)
    assert close(picture(tmp_path / "out" / "colour.png"), by_channel)


# ---- filters ----


def filtered(name, image, sigma):
    """`image` float32, in [-1, 1] but for noise."""
    return np.asarray(to_uint8(jax.jit(filters.DENOISERS[name], static_argnums=1)(image, sigma)))


@pytest.mark.parametrize("name", FILTERS)
def test_filters_take_noise_of_grey_levels(name, tmp_path):
    """Both kinds of images of one size in one folder, each as it is."""
    images = {"grey": smooth(32, 40, 1), "colour": smooth(32, 40, 3)}
    rng = np.random.default_rng(0)
    for key, image in images.items():
        noisy = np.clip(image + rng.normal(0, 20, image.shape), 0, 255).round().astype(np.uint8)
        save_png(noisy, tmp_path / "in" / f"{key}.png")
    aigc("--method", name, "--sigma", 20, "--input", tmp_path / "in", "--out", tmp_path / "out")
    for key, image in images.items():
        made, noisy = (picture(tmp_path / d / f"{key}.png") for d in ("out", "in"))
        assert close(made, filtered(name, floats(noisy), 20 / 127.5))
        assert psnr(made, image) > psnr(noisy, image) + 1


def test_the_filters_are_those_of_the_help(capsys):
    assert set(filters.DENOISERS) == set(FILTERS)
    with pytest.raises(SystemExit):
        aigc("--help")
    assert ", ".join(FILTERS) in re.sub(r"\s+", " ", capsys.readouterr().out)


# ---- scores ----


def test_against_whole_images(grey_run, tmp_path, capsys):
    """Of the same stems, in folders alike; one is exact already."""
    names = {"a.png": (20, 30, 1), "deep/b.png": (24, 17, 3), "deep/c.png": (20, 30, 1)}
    for i, (name, shape) in enumerate(names.items()):
        truth = smooth(*shape)
        save_png(truth, tmp_path / "whole" / name.replace(".png", ".bmp"))
        noisy = np.clip(truth + np.random.default_rng(i).normal(0, 25, shape), 0, 255)
        save_png((noisy if i < 2 else truth).astype(np.uint8), tmp_path / "in" / name)
    capsys.readouterr()
    aigc("--workdir", grey_run, "--input", tmp_path / "in", "--out", tmp_path / "out",
         "--target", tmp_path / "whole")  # fmt: skip
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    found, before = [], []
    for name, shape in names.items():
        score, truth = scores["images"][name], smooth(*shape)
        found.append(psnr(picture(tmp_path / "out" / name), truth))
        np.testing.assert_allclose(score["psnr"], found[-1], rtol=1e-4)
        if name == "deep/c.png":
            assert score["input_psnr"] is None
        else:
            before.append(psnr(picture(tmp_path / "in" / name), truth))
            np.testing.assert_allclose(score["input_psnr"], before[-1], rtol=1e-4)
        assert 0 < score["ssim"] < 1
    np.testing.assert_allclose(scores["psnr"]["value"], np.mean(found), rtol=1e-4)
    np.testing.assert_allclose(scores["input_psnr"]["value"], np.mean(before), rtol=1e-4)
    provenance = scores["provenance"]
    assert provenance["by"] == str(grey_run) and provenance["target"] == str(tmp_path / "whole")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 images restored in {tmp_path / 'out'}" and len(lines) == 5
    assert lines[1].startswith(f"PSNR {found[0]:6.2f} dB (input {before[0]:6.2f} dB), SSIM ")
    assert "(input exact)" in lines[3] and lines[3].endswith("  deep/c.png")
    assert lines[4].endswith("  mean of 3")


def test_one_file_against_another_of_any_name(grey_run, tmp_path):
    """A colour truth of a grey image counts by its luma."""
    save_png(noise(12, 12, 1), tmp_path / "x.png")
    truth = smooth(12, 12, 3)
    save_png(truth, tmp_path / "y.bmp")
    done = restore(str(tmp_path / "x.png"), tmp_path / "out", workdir=grey_run,
                   target=str(tmp_path / "y.bmp"))  # fmt: skip
    luma = np.round(truth @ np.float32([0.299, 0.587, 0.114]))[..., None]
    found = psnr(picture(tmp_path / "out" / "x.png"), luma)
    np.testing.assert_allclose(done.scores["images"]["x.png"]["psnr"], found, rtol=1e-4)


def test_many_scores_are_told_by_their_mean():
    score = {"psnr": 30.0, "ssim": 0.9, "input_psnr": 20.0}
    means = {name: {"value": value} for name, value in score.items()}
    scores = means | {"images": {f"{i}.png": score for i in range(3)}}
    done = restoration.Restored(3, "out", scores, [], {})
    line = "PSNR  30.00 dB (input  20.00 dB), SSIM 0.9000"
    mean = ["3 images restored in out", f"{line}  mean of 3"]
    assert done.told(most=2).splitlines() == mean
    assert done.told().splitlines() == [mean[0], *[f"{line}  {i}.png" for i in range(3)], mean[1]]


@pytest.mark.parametrize("seed", [0, 7])
def test_damage_is_neither_clipped_nor_rounded(colour_run, tmp_path, seed):
    """Black and white are in the images: clipped noise would be another input."""
    shapes = [(20, 31, 3), (16, 16, 1), (20, 31, 3)]
    for i, shape in enumerate(shapes):
        save_png(smooth(*shape), tmp_path / "in" / f"{i}.png")
    aigc("--workdir", colour_run, "--input", tmp_path / "in", "--out", tmp_path / "out",
         "--degrade", "blur(0.7),noise(30)", "--seed", seed)  # fmt: skip
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    chain = degrade.parse("blur(0.7),noise(30)")
    for i, shape in enumerate(shapes):
        damaged = degrade.apply(chain, floats(smooth(*shape)), np.int32([seed, i])).numpy()
        assert abs(damaged).max() > 1.2
        made = picture(tmp_path / "out" / f"{i}.png")
        assert close(made, expected(colour_run, damaged))
        score = scores["images"][f"{i}.png"]
        seen = np.clip(np.round((damaged + 1) * 127.5), 0, 255)
        np.testing.assert_allclose(score["psnr"], psnr(made, smooth(*shape)), rtol=1e-4)
        np.testing.assert_allclose(score["input_psnr"], psnr(seen, smooth(*shape)), rtol=1e-3)
    provenance = scores["provenance"]
    assert (provenance["degrade"], provenance["seed"]) == ("blur(0.7),noise(30)", seed)


def test_a_filter_sees_what_is_not_clipped(tmp_path):
    save_png(smooth(24, 24, 1), tmp_path / "x.png")
    aigc("--method", "gaussian", "--sigma", 30, "--input", tmp_path / "x.png", "--out",
         tmp_path / "out", "--degrade", "noise(30)")  # fmt: skip
    damaged = degrade.apply(degrade.parse("noise(30)"), floats(smooth(24, 24, 1)), np.int32([0, 0]))
    made = picture(tmp_path / "out" / "x.png")
    assert close(made, filtered("gaussian", damaged.numpy(), 30 / 127.5))
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["provenance"]["by"] == "gaussian for sigma 30"
    assert scores["psnr"]["value"] > scores["input_psnr"]["value"] + 1


# ---- from Python ----


def test_a_restorer_keeps_the_order(grey_run):
    images = [noise(*size, 1 + 2 * (i % 2), seed=i) for i, size in enumerate(SIZES)]
    restorer = Restorer.of_run(runs.load(grey_run))
    for image, made in zip(images, restorer(images), strict=True):
        assert made.dtype == np.uint8 and close(made, expected(grey_run, image))
    assert restorer([]) == []


def test_a_filter_takes_both_kinds_in_any_order():
    images = [smooth(12, 10, channels) for channels in (1, 3, 3, 1)]
    made = Restorer.of_filter("gaussian", 10.0)(images)
    for image, one in zip(images, made, strict=True):
        assert close(one, filtered("gaussian", floats(image), 10 / 127.5))


# ---- mistakes ----

MISTAKES = {
    "none of the three": ("", ["--workdir", "--weights", "--method (", "nlmeans"]),
    "two of them": ("--workdir={run} --method=median --sigma=5", ["one of a run's --workdir"]),
    "no run": ("--workdir={empty}", ["{empty}", "config.json"]),
    "of another method": ("--workdir={judge}", ["'classifier'", "doesn't restore"]),
    "of holes": ("--workdir={holes}", ["{holes} fills holes", "aigc inpaint"]),
    "no such step": ("--workdir={run} --step=7", ["step 7"]),
    "a filter's step": ("--method=tv --sigma=5 --step=7", ["--step 7"]),
    "no such filter": ("--method=medain --sigma=5", ["'medain'", "'median'"]),
    "a filter without sigma": ("--method=median", ["--method median needs --sigma", "grey levels"]),
    "sigma without a filter": ("--workdir={run} --sigma=5", ["only --method takes --sigma"]),
    "sigma 0": ("--method=median --sigma=0", ["--sigma 0", "above 0"]),
    "sigma nan": ("--method=median --sigma=nan", ["--sigma nan", "above 0"]),
    "no weights": ("--weights={nowhere}", ["{nowhere}"]),
    "not weights": ("--weights={file}", ["{file}"]),
    "no such input": ("--workdir={run} --input={nowhere}", ["{nowhere}", "no such"]),
    "no images": ("--workdir={run} --input={empty}", ["{empty}", "no images"]),
    "none readable": ("--workdir={run} --input={bad}", ["{bad}", "1 image files", "none"]),
    "taken": ("--workdir={run} --out={in}", ["{in}", "not empty"]),
    "tile": ("--workdir={run} --tile=7", ["--tile 7", "8 or more"]),
    "two truths": ("--workdir={run} --target={in} --degrade=noise(5)", ["leave out --target"]),
    "a missing target": ("--workdir={run} --target={two}", ["{two}", "name of x.png:"]),
    "missing targets": ("--workdir={run} --input={two} --target={three}",
                        ["{three}", "name of a.png, nor of 1 more"]),
    "no readable target": ("--workdir={run} --target={bad}", ["--target {bad}: 1 image files"]),
    "a target's size": ("--workdir={run} --target={other}", ["{other}/x.png is 6x8", "8x8"]),
    "a torn target": ("--workdir={run} --target={torn}", ["--target: {torn}/x.bmp can't be read"]),
    "small for a filter": ("--method=nlmeans --sigma=25 --input={small}",
                           ["{small}/x.png is 5x4", "filters need 16 pixels"]),
    "small for SSIM": ("--workdir={run} --input={small} --degrade=noise(5)",
                       ["{small}/x.png is 5x4", "SSIM needs 6 pixels"]),
    "strong noise": ("--method=tv --sigma=256", ["--sigma 256", "up to 255"]),
    "a file for many": ("--method=tv --sigma=25 --out=x.png", ["--out x.png: this makes a folder"]),
    "small tiles": ("--method=tv --sigma=25 --tile=8", ["--tile 8", "64 or more"]),
    "an unknown damage": ("--workdir={run} --degrade=nois(5)",
                          ["--degrade: unknown degradation 'nois'", "'noise'"]),
    "seed": ("--workdir={run} --degrade=noise(5) --seed=-1", ["--seed -1", "0 to 2147483647"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(colour_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "file").write_text("no weights")
    save_png(noise(8, 8, 3), folder / "in" / "x.png")
    save_png(noise(8, 6, 3), folder / "other" / "x.png")
    for name in ("two/a", "two/b", "three/c", "three/d", "three/e"):
        save_png(noise(8, 8, 3), folder / f"{name}.png")
    save_png(noise(8, 8, 3), folder / "torn" / "x.bmp")
    torn = folder / "torn" / "x.bmp"
    torn.write_bytes(torn.read_bytes()[:-9])
    save_png(noise(4, 5, 1), folder / "small" / "x.png")
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_text("no image")
    helpers.planned(folder / "judge", "digits_classifier")
    helpers.planned(folder / "holes", "cifar10_inpaint")
    named = {path.name: path for path in folder.iterdir()}
    return {**named, "nowhere": folder / "nowhere", "run": colour_run}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, places, tmp_path, capsys):
    flags, words = MISTAKES[name]
    argv = flags.format(**places).split()
    for flag, value in (("--input", places["in"]), ("--out", tmp_path / "out")):
        if not any(each.startswith(flag) for each in argv):
            argv.append(f"{flag}={value}")
    helpers.mistake("restore", argv, [word.format(**places) for word in words], capsys)
    assert not list(tmp_path.rglob("*.png"))
