"""Reconstructions and walks of real runs, by the command line: what is in each file, and whose."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax import cli, latents, pair_scores, runs
from aigc_jax.data import sources
from aigc_jax.data.pictures import Picture
from aigc_jax.errors import UserError
from aigc_jax.latents import Coder, slerp
from aigc_jax.types import to_uint8
from aigc_jax.writers import save_png

pytestmark = pytest.mark.usefixtures("compiled_once")

# A few steps are enough to tell one reconstruction from another.
TINY = [
    "--config.image_size=16",
    "--config.encoder.width=32",
    "--config.encoder.depth=1",
    "--config.decoder.width=32",
    "--config.decoder.depth=1",
    "--config.latent_dim=4",
    "--config.beta=0.01",
    "--config.optimizer.lr=0.01",
    "--config.optimizer.eps=1e-8",
    "--config.optimizer.schedule=constant",
    "--config.batch_size=32",
    "--config.num_train_steps=120",
    "--config.steps_per_dispatch=1",
    "--config.log_every=0",
    "--config.sample_every=0",
    "--config.checkpoint_every=0",
    "--config.ema.half_life=0",
    "--config.eval.nll_samples=4",
    "--config.eval.extractor=",
]
VARIED = ["--config.optimizer.lr=0.02", "--config.ema.half_life=0", "--config.eval.extractor="]


def aigc(*argv):
    assert cli.main([*map(str, argv)]) == 0


@pytest.fixture(scope="module")
def digits():
    """The test split at 16x16: images (300, 16, 16, 1) uint8, labels."""
    found = sources.load("digits", split="test", image_size=16)
    return found.images, found.labels


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "vae"
    argv = [*TINY, "--config.data.source=digits"]
    aigc("train", "--config=mnist_vae:smoke", *argv, f"--workdir={workdir}")
    return workdir


@pytest.fixture(scope="module")
def named_run(tmp_path_factory, digits, compiled_once):
    """Conditional, on a folder whose classes sort otherwise than the digits they hold."""
    folder = tmp_path_factory.mktemp("named")
    for split, first in (("train", 0), ("test", 150)):
        for i in range(first, first + 150):
            if digits[1][i] < 3:
                name = ("zero", "one", "two")[digits[1][i]]
                save_png(digits[0][i], folder / split / name / f"{i}.png")
    argv = [*TINY, f"--config.data.source=folder:{folder}", "--config.task=label"]
    workdir = folder / "run"
    aigc("train", "--config=mnist_vae:smoke", *argv, f"--workdir={workdir}")
    return workdir


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "gan"
    argv = ["--config.generator.width=4", "--config.discriminator.width=4"]
    argv += ["--config.generator.latent_dim=8", "--config.image_size=16", *VARIED]
    aigc("train", "--config=digits_dcgan:smoke", *argv, f"--workdir={workdir}")
    return workdir


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image)[..., None]


def written(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def call(run, function, *args):
    return jax.jit(functools.partial(getattr(run.method, function), run.spec))(*args)


def by_hand(run, images, label=None):
    """(latents, reconstructions uint8) by the method's own functions, on one device at once."""
    batch = {"image": images.astype(np.float32) / 127.5 - 1, "index": np.arange(len(images))}
    if label is not None:
        batch["label"] = np.int32(label)
    z = call(run, "encode", run.state, batch)
    return np.asarray(z), np.asarray(to_uint8(call(run, "decode", run.state, z, batch)))


def close(x, y):
    """Other programs may round otherwise."""
    return abs(np.int32(x) - np.int32(y)).max() <= 1


# ---- the arc ----


def test_slerp_turns_by_equal_angles():
    """Against polar coordinates: in a plane, a walk is a turn, at the radius of its ends."""
    radius, first, last = np.array([0.5, 3.0, 7.0]), np.array([0.1, 2.0, -1.0]), 1.7
    angles = first[:, None] + np.linspace(0, last, 7)

    def place(angle):
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)

    walks = slerp(place(first), place(first + last), 7)
    expected = radius[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    np.testing.assert_allclose(walks, expected, atol=1e-12)


def test_slerp_in_many_dimensions():
    start, end = np.random.default_rng(0).normal(size=(2, 5, 4, 3, 8)).astype(np.float32)
    walks = slerp(start, end, 11)
    assert walks.shape == (5, 11, 4, 3, 8) and walks.dtype == np.float32
    np.testing.assert_array_equal(walks[:, 0], start)
    np.testing.assert_array_equal(walks[:, -1], end)
    flat = walks.reshape(5, 11, -1).astype(np.float64)
    norms = np.linalg.norm(flat, axis=-1)
    # Between the ends' norms, as the norm of a straight line is not.
    assert (norms > 0.95 * norms[:, [0, -1]].min(1, keepdims=True)).all()
    straight = np.linalg.norm((flat[:, 0] + flat[:, -1]) / 2, axis=-1)
    assert (norms[:, 5] > 1.2 * straight).all()
    # With ends of one norm, every step turns by the same angle.
    flat = slerp(*(x / np.linalg.norm(x.reshape(5, -1), axis=1).reshape(5, 1, 1, 1)
                   for x in (start.astype(np.float64), end.astype(np.float64))), 11)  # fmt: skip
    flat = flat.reshape(5, 11, -1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=-1), 1, atol=1e-12)
    whole = np.arccos(np.einsum("bd,bd->b", flat[:, 0], flat[:, -1]))
    steps = np.arccos(np.einsum("btd,btd->bt", flat[:, 1:], flat[:, :-1]))
    np.testing.assert_allclose(steps, np.repeat(whole[:, None] / 10, 10, 1), atol=1e-7)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-9, -1.0, 0.0])
def test_slerp_where_there_is_no_arc(factor):
    """The same direction, the opposite one, the origin: finite, its ends exact."""
    start = np.array([[1.0, 2.0, -2.0]])
    walk = slerp(start, factor * start, 5)
    np.testing.assert_array_equal(walk[:, 0], start)
    np.testing.assert_array_equal(walk[:, -1], factor * start)
    if factor:
        line = np.linspace(1, factor, 5).reshape(1, 5, 1) * start[:, None]
        np.testing.assert_allclose(walk, line, atol=1e-6)


# ---- reconstruct ----


def test_reconstruct_a_folder(vae_run, digits, tmp_path, capsys):
    """Every pair and number against the method's own functions and the formulas."""
    images = digits[0][:70]
    for i, image in enumerate(images):
        save_png(image, tmp_path / "in" / ("a" if i % 2 else "b") / f"{i // 2}.png")
    capsys.readouterr()
    aigc("reconstruct", f"--workdir={vae_run}", f"--input={tmp_path / 'in'}",
         f"--out={tmp_path / 'out'}")  # fmt: skip
    out, err = capsys.readouterr()
    assert err == ""
    names = [f"{'a' if i % 2 else 'b'}/{i // 2}.png" for i in range(70)]
    assert written(tmp_path / "out") == sorted([*names, "scores.json"])
    _, expected = by_hand(runs.load(vae_run), images)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    psnrs = []
    for name, image, decoded in zip(names, images, expected, strict=True):
        pair = picture(tmp_path / "out" / name)
        assert pair.shape == (16, 32, 1)
        np.testing.assert_array_equal(pair[:, :16], image)
        assert close(pair[:, 16:], decoded)
        error = np.mean((pair[:, :16].astype(float) - pair[:, 16:]) ** 2)
        psnrs.append(10 * np.log10(255**2 / error))
        assert scores["images"][name]["psnr"] == pytest.approx(psnrs[-1], rel=1e-5)
    assert scores["psnr"]["value"] == pytest.approx(np.mean(psnrs), rel=1e-5)
    ssims = [score["ssim"] for score in scores["images"].values()]
    assert scores["ssim"]["value"] == pytest.approx(np.mean(ssims)) and scores["ssim"]["n"] == 70
    assert scores["provenance"]["run"] == f"{vae_run} step 120"
    lines = out.splitlines()
    assert len(lines) == 22 and "50 more" in lines[20]
    first, psnr, *_, ssim = lines[0].split()
    assert (first, psnr) == ("a/0.png", "PSNR")
    assert float(ssim) == pytest.approx(scores["images"]["a/0.png"]["ssim"], abs=1e-4)
    assert f"Mean of 70: PSNR {np.mean(psnrs):.2f} dB" in lines[-1]


def test_ssim_is_of_the_files(vae_run, digits, tmp_path):
    skimage = pytest.importorskip("skimage.metrics")
    save_png(digits[0][0], tmp_path / "x.png")
    found = latents.reconstruct(vae_run, str(tmp_path / "x.png"), tmp_path / "out")
    pair = picture(tmp_path / "out" / "x.png")[..., 0]
    value = skimage.structural_similarity(
        pair[:, :16], pair[:, 16:], data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert found.scores["images"]["x.png"]["ssim"] == pytest.approx(value, abs=1e-5)


def test_images_of_another_size_are_read_as_in_training(vae_run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i, size in enumerate([(40, 30, 3), (16, 16, 1), (20, 50, 3)]):
        save_png(rng.integers(0, 256, size, dtype=np.uint8), tmp_path / "in" / f"{i}.png")
    capsys.readouterr()
    aigc("reconstruct", f"--workdir={vae_run}", f"--input={tmp_path / 'in'}",
         f"--out={tmp_path / 'out'}")  # fmt: skip
    assert "as in training: 2 of 3 images" in capsys.readouterr().out
    read = sources.load(f"folder:{tmp_path / 'in'}", image_size=16, channels=1).images
    for i in range(3):
        np.testing.assert_array_equal(picture(tmp_path / "out" / f"{i}.png")[:, :16], read[i])


def test_what_is_no_image_is_named_and_skipped(vae_run, digits, tmp_path, caplog):
    save_png(digits[0][0], tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.jpg").write_text("no image")
    (tmp_path / "in" / "notes.txt").write_text("nor asked for")
    found = latents.reconstruct(vae_run, str(tmp_path / "in"), tmp_path / "out")
    assert written(tmp_path / "out") == ["good.png", "scores.json"]
    assert found.skipped == [str(tmp_path / "in" / "bad.jpg")] and "bad.jpg" in caplog.text
    assert "1 file" in found.told()
    (tmp_path / "in" / "good.png").unlink()
    with pytest.raises(UserError, match="none can be read"):
        latents.reconstruct(vae_run, str(tmp_path / "in"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_two_of_one_stem_in_one_folder(vae_run, digits, tmp_path):
    for name in ("x.png", "x.bmp", "y.bmp"):
        save_png(digits[0][0], tmp_path / "in" / name)
    latents.reconstruct(vae_run, str(tmp_path / "in"), tmp_path / "out")
    assert written(tmp_path / "out") == ["scores.json", "x.bmp.png", "x.png.png", "y.png"]


def test_no_two_files_go_to_one_place():
    names = ["a.jpg", "a.bmp", "a.jpg.png", "b/a.jpg", "c.gif", "c.gif.png.jpg", "c.gif.png", "c.x"]
    files = [Picture(Path(name), name) for name in names]
    places = list(latents.targets(files).values())
    assert len({*places}) == len(names) and all(place.endswith(".png") for place in places)
    assert places[:4] == ["a.jpg.png", "a.bmp.png", "a.jpg.png.png", "b/a.png"]


def test_an_exact_copy_has_no_psnr():
    found = {"a": {"psnr": 20.0, "ssim": 0.5}, "b": {"psnr": float("inf"), "ssim": 1.0}}
    found = {name: score | {"border": "valid"} for name, score in found.items()}
    summary = json.loads(json.dumps(pair_scores.summary(found)))
    assert summary["psnr"] == {"value": 20.0, "unit": "dB", "n": 1, "exact": 1}
    assert summary["images"]["b"]["psnr"] is None and summary["ssim"]["value"] == 0.75
    assert "b  PSNR inf" in latents.Reconstruction(summary, 0, []).told()


def test_labels_are_the_runs_own(named_run, digits, tmp_path):
    """Subfolders by class name, by number, or --label; what is decoded tells which was taken."""
    assert json.loads((named_run / "run.json").read_text())["class_names"] == ["one", "two", "zero"]
    image, run = digits[0][0], runs.load(named_run)
    for name in ("named/zero/x.png", "numbered/1/x.png", "plain/x.png"):
        save_png(image, tmp_path / name)
    expected = {i: by_hand(run, image[None], [i])[1][0] for i in range(3)}
    assert not any(close(expected[i], expected[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    for name, label, flags in (
        ("named/zero/x.png", 2, []), ("numbered/1/x.png", 1, []), ("plain/x.png", 0, ["--label=0"]),
        ("named/zero/x.png", 0, ["--label=0"]),
    ):  # fmt: skip
        root, _, below = name.partition("/")
        out = tmp_path / "_".join(["out", root, *flags])
        aigc("reconstruct", f"--workdir={named_run}", f"--input={tmp_path / root}",
             f"--out={out}", *flags)  # fmt: skip
        assert close(picture(out / below)[:, 16:], expected[label])


def told_by(capsys, *argv):
    capsys.readouterr()
    code = cli.main([*map(str, argv)])
    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1 and line.startswith(f"aigc {argv[0]}: ")
    return line


def test_mistakes_of_labels_are_told_before_a_checkpoint_is_read(
    named_run, digits, tmp_path, capsys
):
    hollow = tmp_path / "hollow"
    shutil.copytree(named_run, hollow, ignore=shutil.ignore_patterns("checkpoints"))
    for name in ("flat/x.png", "other/three/x.png"):
        save_png(digits[0][0], tmp_path / name)
    (tmp_path / "empty").mkdir()
    argv = ["reconstruct", f"--workdir={hollow}", f"--out={tmp_path / 'out'}"]
    for folder, words in (
        ("flat", ["--label", "one, two, zero"]),
        ("other", ["three/x.png", "one, two, zero"]),
        ("other --label=3", ["--label 3", "0 to 2"]),
        ("empty", ["no images"]),
        ("nowhere", ["nowhere", "no such"]),
        ("flat --label=0", ["checkpoint"]),
    ):
        line = told_by(capsys, *argv, *f"--input={tmp_path}/{folder}".split())
        assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken(vae_run, digits, tmp_path, capsys):
    save_png(digits[0][0], tmp_path / "in" / "x.png")
    argv = ["reconstruct", f"--workdir={vae_run}", f"--input={tmp_path / 'in'}"]
    assert "not empty" in told_by(capsys, *argv, f"--out={tmp_path / 'in'}")
    assert written(tmp_path / "in") == ["x.png"]
    assert "unconditional" in told_by(capsys, *argv, f"--out={tmp_path / 'out'}", "--label=3")


@pytest.mark.parametrize("batch_size", [3, 64])
def test_codes_do_not_depend_on_the_batch(vae_run, digits, batch_size):
    """Padded parts over 8 devices, and all at once on one."""
    run, images = runs.load(vae_run), digits[0][:21]
    batch = {"image": images.astype(np.float32) / 127.5 - 1, "index": np.arange(21, dtype=np.int32)}
    coder = Coder(run, batch_size)
    assert coder.batch_size % jax.local_device_count() == 0
    z, decoded = by_hand(run, images)
    np.testing.assert_allclose(coder.encode(batch), z, atol=1e-5)
    assert close(coder.decode(z, batch), decoded)


# ---- interpolate ----


def tiles(path, size=16):
    grid = picture(path)
    rows, columns = ((side - 2) // (size + 2) for side in grid.shape[:2])
    at = [[(2 + r * (size + 2), 2 + c * (size + 2)) for c in range(columns)] for r in range(rows)]
    return np.array([[grid[y : y + size, x : x + size] for y, x in row] for row in at])


def test_walks_of_a_gan(gan_run, tmp_path):
    """Their ends are the run's samples of a class, row by row; between them, those of the arc."""
    aigc("interpolate", f"--workdir={gan_run}", f"--out={tmp_path / 'x.png'}", "--rows=3",
         "--columns=4", "--seed=5")  # fmt: skip
    grid, run = tiles(tmp_path / "x.png"), runs.load(gan_run)
    assert grid.shape == (3, 4, 16, 16, 1)
    batch = {"index": np.arange(6, dtype=np.int32), "label": np.int32([0, 0, 1, 1, 2, 2])}
    rng = jax.random.key(5)
    samples = to_uint8(call(run, "sample", run.state, rng, batch))
    assert close(grid[:, 0], samples[0::2]) and close(grid[:, -1], samples[1::2])
    z = np.asarray(call(run, "latents", rng, batch))
    second = slerp(z[0::2], z[1::2], 4)[:, 1]
    rows = {"index": batch["index"][:3], "label": np.int32([0, 1, 2])}
    assert close(grid[:, 1], to_uint8(call(run, "decode", run.state, second, rows)))
    three = latents.interpolate(gan_run, 3, 2, label=7, seed=5)
    batch["label"] = np.full(6, 7, np.int32)
    samples = to_uint8(call(run, "sample", run.state, rng, batch))
    assert close(three[:, 0], samples[0::2]) and close(three[:, 1], samples[1::2])
    assert not close(three[:, 0], latents.interpolate(gan_run, 3, 2, label=7, seed=6)[:, 0])


def test_walks_of_a_vae(vae_run):
    run, grid = runs.load(vae_run), latents.interpolate(vae_run, 2, 3, seed=1)
    batch = {"index": np.arange(4, dtype=np.int32)}
    samples = to_uint8(call(run, "sample", run.state, jax.random.key(1), batch))
    assert close(grid[:, 0], samples[0::2]) and close(grid[:, -1], samples[1::2])


def test_walks_between_images(vae_run, digits, tmp_path):
    """The ends of each row are reconstructions of two inputs that can be read."""
    for i in range(6):
        save_png(digits[0][i], tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no image")
    _, decoded = by_hand(runs.load(vae_run), digits[0][:6])
    for seed in range(3):
        grid = latents.interpolate(vae_run, 5, 3, source=str(tmp_path), seed=seed)
        ends = [[next(i for i in range(6) if close(row[c], decoded[i])) for c in (0, -1)]
                for row in grid]  # fmt: skip
        assert all(first != last for first, last in ends)
        assert {i for pair in ends[:3] for i in pair} == set(range(6))


def test_walks_between_images_keep_the_class(named_run, digits, tmp_path, capsys):
    run, expected = runs.load(named_run), {}
    for name, label, rows in (("one", 0, [1, 11, 21]), ("zero", 2, [0, 10]), ("two", 1, [2])):
        for i in rows:
            save_png(digits[0][i], tmp_path / "in" / name / f"{i}.png")
            expected.setdefault(label, []).extend(by_hand(run, digits[0][[i]], [label])[1])
    out = tmp_path / "x.png"
    aigc("interpolate", f"--workdir={named_run}", f"--out={out}", f"--input={tmp_path / 'in'}",
         "--rows=4", "--columns=3")  # fmt: skip
    for row, label in zip(tiles(out), [0, 2, 0, 2], strict=True):
        for end in (row[0], row[-1]):
            assert any(close(end, decoded) for decoded in expected[label])
    alone = tmp_path / "in" / "two"
    line = told_by(capsys, "interpolate", f"--workdir={named_run}", f"--out={out}",
                   f"--input={alone}", "--label=1")  # fmt: skip
    assert "2 or more" in line


# ---- the whole journey ----


def test_a_vae_from_training_to_scores(vae_run, tmp_path, capsys):
    aigc("sample", f"--workdir={vae_run}", f"--out={tmp_path / 'x.npz'}", "--n=9")
    aigc("sample", f"--workdir={vae_run}", f"--out={tmp_path / 'y.npz'}", "--n=9",
         "--temperature=0.01")  # fmt: skip
    spread = [np.load(tmp_path / f"{name}.npz")["arr_0"].std(0).mean() for name in "xy"]
    assert spread[1] < 0.2 * spread[0]
    found = {}
    for k in (1, 60):
        out = tmp_path / f"{k}.json"
        aigc("evaluate", f"--fake={vae_run}", "--metrics=elbo,nll", f"--k={k}", f"--json={out}")
        found[k] = json.loads(out.read_text())
        assert list(found[k]) == ["elbo", "nll", "provenance"]
        assert found[k]["nll"]["k"] == k and found[k]["nll"]["n"] == found[k]["elbo"]["n"] == 300
        assert found[k]["nll"]["unit"] == "nats"
    assert found[60]["elbo"]["value"] == pytest.approx(found[1]["elbo"]["value"], rel=0.02)
    # The bound of more samples is the tighter (Burda et al. 2016, theorem 1).
    assert found[60]["nll"]["value"] < found[1]["nll"]["value"]
    assert found[60]["nll"]["value"] < -found[60]["elbo"]["value"]
    assert "(k = 60)" in capsys.readouterr().out
