"""Robustness curves of real runs, against the same numbers by hand; and how strengths are read."""

import functools
import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from translation_helpers import psnr64

from aigc_jax import config as configs
from aigc_jax import methods, parallel, robustness, runs
from aigc_jax.checkpoint import Checkpoints
from aigc_jax.data import configured, degrade, sources
from aigc_jax.data.dataset import subset
from aigc_jax.errors import UserError
from aigc_jax.methods import pix2pix, restoration, vae

SIZE, NUM, SEED = 16, 24, 7
ROWS = subset(300, NUM)  # of the digits' 300 test images
SEEDS = np.stack([np.full(NUM, SEED), ROWS], 1).astype(np.int32)


# ---- strengths ----


def test_sweeps_are_evenly_spaced_from_end_to_end():
    noise, jpeg, elastic = robustness.sweeps("noise(0..75), jpeg(95..5),elastic(0..8,4)", 4)
    assert noise.strengths == (0, 25, 50, 75) and noise.parameter == "sigma"
    assert jpeg.strengths == (95, 65, 35, 5)
    assert list(map(str, noise.operations)) == ["noise(0)", "noise(25)", "noise(50)", "noise(75)"]
    assert [str(x.args[1]) for x in elastic.operations] == ["4"] * 4
    assert elastic.text == "elastic(0..8,4)"


def test_what_counts_is_swept_by_whole_numbers():
    (levels,) = robustness.sweeps("quantize(2..5)", 9)
    assert levels.strengths == (2, 3, 4, 5)


@pytest.mark.parametrize(
    "ops, points, told",
    [
        ("noize(0..75)", 6, "unknown degradation 'noize'. Did you mean 'noise'"),
        ("noise(0..300)", 6, "from 0 to 255, not 300"),
        ("jpeg(40)", 6, "'jpeg.40.' has no range of strengths"),
        ("blur(0..4),blind", 6, "'blind' has no range"),
        ("noise(0..x)", 6, "'x' is no number"),
        ("noise", 6, "noise takes 1 argument"),
        ("noise(0..75)", 1, "--points 1"),
    ],
)
def test_mistakes_in_strengths_are_told(ops, points, told):
    with pytest.raises(UserError, match=told):
        robustness.sweeps(ops, points)


# ---- runs, as they are born ----


def saved(workdir, config, **fields):
    """A run of a fresh network with louder kernels, on the disk as training leaves it."""
    config.update(image_size=SIZE, batch_size=8, **fields)
    config.eval.batch_size = 32
    config, stream = configured.training(config)
    batch = next(iter(stream(0)))
    runs.claim(workdir, config, batch, stream.class_names)
    method = methods.load(config.method)
    spec = method.from_config(config)
    state = jax.jit(functools.partial(method.init_state, spec))(jax.random.key(0), batch)
    state = jax.tree.map(lambda x: x * 2 if x.ndim > 1 else x, state)
    with Checkpoints(workdir, parallel.layout("jit", jax.devices()[:1])) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
    return workdir


def base(method, **fields):
    config = configs.default()
    config.method = method.__name__.rpartition(".")[2]
    config.update(method.defaults())
    config.update(fields)
    return configs.finish(config)


def denoiser(workdir, trained_on="noise(25)"):
    config = base(restoration, task="restore")
    config.model = ConfigDict({"name": "dncnn", "depth": 3, "width": 4})
    config.data.degrade = trained_on
    return saved(workdir, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reader(folder):
    config = configs.load("digits_classifier")
    config.model.width = 4
    return saved(folder / "reader", config)


@pytest.fixture(scope="module")
def special(folder):
    return denoiser(folder / "special")


@pytest.fixture(scope="module")
def blind(folder):
    return denoiser(folder / "blind", "noise(0..55)")


@pytest.fixture(scope="module")
def coder(folder):
    config = base(vae, task="generate", latent_dim=4, likelihood="bernoulli")
    for name in ("encoder", "decoder"):
        config[name] = ConfigDict({"name": "vae_mlp", "width": 16, "depth": 1})
    return saved(folder / "coder", config)


@pytest.fixture(scope="module")
def clean():
    """(24, 16, 16, 1) uint8 and their labels."""
    found = sources.load("digits", split="test", image_size=SIZE)
    return found.images[ROWS], found.labels[ROWS]


def floats(images):
    return images.astype(np.float32) / 127.5 - 1


def called(workdir, function, *args):
    run = runs.load(workdir)
    method = functools.partial(getattr(run.method, function), run.spec)
    return jax.jit(method)(run.state, *args)


def curve(found, i=0):
    return found.found["curves"][i]


def test_a_classifier_by_its_accuracy(reader, clean, tmp_path):
    asked = "noise(0..75),jpeg(95..5)"
    found = robustness.curves([reader], asked, tmp_path / "out", NUM, 3, SEED)
    assert (found.found["metric"], found.found["unit"]) == ("accuracy", "")
    images, labels = clean
    for i, ops in enumerate(
        (("noise(0)", "noise(37.5)", "noise(75)"), ("jpeg(95)", "jpeg(50)", "jpeg(5)"))
    ):
        values = []
        for op in ops:
            seen = degrade.arrays(degrade.parse(op), images, SEEDS)
            logits, _ = called(reader, "predict", floats(seen))
            values.append(np.mean(np.argmax(logits, -1) == labels))
        assert list(curve(found, i)["values"]) == ["reader"]
        np.testing.assert_allclose(curve(found, i)["values"]["reader"], values, atol=1e-6)
    assert len(set(curve(found)["values"]["reader"])) > 1


def test_restorers_by_psnr_beside_the_damaged_images(special, blind, clean, tmp_path):
    found = robustness.curves([special, blind], "noise(10..50)", tmp_path / "out", NUM, 2, SEED)
    values = curve(found)["values"]
    assert list(values) == ["damaged", "special", "blind"] and found.found["unit"] == "dB"
    truth = floats(clean[0])
    for j, sigma in enumerate((10, 50)):
        noisy = degrade.batch(degrade.parse(f"noise({sigma})"), truth, SEEDS).numpy()
        assert abs(noisy).max() > 1  # restorers see it so
        np.testing.assert_allclose(
            values["damaged"][j], psnr64(np.clip(noisy, -1, 1), truth).mean(), rtol=1e-5
        )
        for name, workdir in (("special", special), ("blind", blind)):
            made = called(workdir, "restore", noisy)
            np.testing.assert_allclose(values[name][j], psnr64(made, truth).mean(), rtol=1e-4)


def test_what_encodes_and_decodes_by_psnr_to_the_undamaged(coder, clean, tmp_path):
    found = robustness.curves([coder], "blur(0..3)", tmp_path / "out", NUM, 2, SEED)
    truth = floats(clean[0])
    seen = degrade.arrays(degrade.parse("blur(3)"), clean[0], SEEDS)
    batch = {"image": floats(seen), "index": ROWS.astype(np.int32)}
    made = called(coder, "decode", called(coder, "encode", batch), batch)
    values = curve(found)["values"]
    assert values["damaged"][0] == 100  # undamaged: the most that a mean can bear
    np.testing.assert_allclose(values["coder"][1], psnr64(made, truth).mean(), rtol=1e-4)
    np.testing.assert_allclose(values["damaged"][1], psnr64(floats(seen), truth).mean(), rtol=1e-4)


def test_translators_by_psnr_to_the_truth(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3)).astype(np.uint8)
    np.savez(tmp_path / "colour.npz", images=pixels)
    config = base(pix2pix, task="colorize", num_classes=0)
    config.data.source = f"npz:{tmp_path / 'colour.npz'}"
    config.data.split = config.eval.split = "all"
    config.generator.width = config.adversary.discriminator.width = 4
    config.adversary.discriminator.num_layers = 1
    workdir = saved(tmp_path / "colourist", config)
    found = robustness.curves([workdir], "noise(0..40)", tmp_path / "out", 100, 2, SEED)
    truth = floats(pixels)
    luma = np.round((truth + 1) * 127.5 @ np.float32([0.299, 0.587, 0.114]))
    grey = np.repeat(luma[..., None], 3, -1).astype(np.uint8)
    seeds = np.stack([np.full(10, SEED), np.arange(10)], 1).astype(np.int32)
    for j, sigma in enumerate((0, 40)):
        seen = degrade.arrays(degrade.parse(f"noise({sigma})"), grey, seeds)
        made = called(workdir, "translate", floats(seen))
        expected = psnr64(made, truth).mean()
        np.testing.assert_allclose(curve(found)["values"]["colourist"][j], expected, rtol=1e-3)


# ---- files and mistakes ----


def test_what_is_written_and_told(special, blind, tmp_path):
    out = tmp_path / "out"
    found = robustness.curves([special, blind], "noise(10..30),jpeg(90..10)", out, 8, 2)
    assert sorted(path.name for path in out.iterdir()) == ["curves.json", "curves.png"]
    assert json.loads((out / "curves.json").read_text()) == found.found
    with Image.open(out / "curves.png") as image:
        assert image.width == 700 and np.asarray(image.convert("L")).std() > 10
    told = found.told()
    assert "noise(10..30), psnr dB" in told and "| damaged " in told and str(out) in told
    assert f"{curve(found, 1)['values']['blind'][1]:.2f}" in told
    provenance = found.found["provenance"]
    assert provenance["runs"]["blind"]["run"] == f"{blind} step 1"
    assert provenance["runs"]["blind"]["real"] == "digits/test at 16x16x1, 8 of 300"
    assert provenance["seed"] == 0 and provenance["version"]


def test_runs_of_one_folder_name_have_their_paths(special, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/special").symlink_to(special)
    found = robustness.curves(
        [special, tmp_path / "a/special"], "noise(9..10)", tmp_path / "o", 8, 2
    )
    assert list(curve(found)["values"]) == ["damaged", str(special), str(tmp_path / "a/special")]


def test_mistakes_are_told(special, reader, coder, folder, tmp_path):
    def refused(told, *workdirs, ops="noise(0..75)", out=tmp_path / "new", **settings):
        with pytest.raises(UserError, match=told):
            robustness.curves(workdirs, ops, out, **settings)

    refused("measured alike go together", special, reader)
    refused("Name each run once", special, special)
    refused("--num 0", special, num=0)
    refused("--seed -1", special, seed=-1)
    refused("is not a run's workdir", tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    refused("not empty", special, out=tmp_path / "full")
    for name, told in (("gan", "takes no images"), ("holes", "damaged already")):
        config = configs.of_run(special)
        config.update({"method": "gan"} if name == "gan" else {"task": "inpaint"})
        runs.write_json(tmp_path / name / "config.json", json.loads(config.to_json_best_effort()))
        refused(told, tmp_path / name)
    assert not (tmp_path / "new").exists()
