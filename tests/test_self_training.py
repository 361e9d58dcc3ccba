"""Samples that are sifted, a loop that feeds on itself, and whether a run copies: on digits."""

import json

import numpy as np
import pytest

from aigc_jax import cli, exporting, memorization, runs, sampling, self_training, sifting
from aigc_jax import config as configs
from aigc_jax.data import configured, sources
from aigc_jax.errors import UserError
from aigc_jax.metrics import neighbors
from aigc_jax.writers import save_png

pytestmark = pytest.mark.usefixtures("compiled_once")

SMALL = ["generator.width=4", "discriminator.width=4", "image_size=16"]


def small():
    config = configs.override(
        configs.load("digits_dcgan:smoke"), [f"--config.{flag}" for flag in SMALL]
    )
    config.num_train_steps = 4
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_once):
    from aigc_jax import train

    workdir = tmp_path_factory.mktemp("runs") / "gan"
    train.run(small(), workdir)
    return runs.load(workdir)


@pytest.fixture(scope="module")
def seen(run):
    """Viewer, what it sees of training images, samples, their labels, and what it sees of them."""
    viewer = sifting.viewer_of(run.config)
    known = sifting.training_images(run.config, viewer)
    images, labels = sampling.generate(run, 60)
    return viewer, known, images, labels, viewer.see(sifting.of_arrays("", images, viewer, labels))


# ---- filters ----


def test_each_filter_keeps_what_it_says(seen):
    viewer, known, images, labels, those = seen
    chances = np.exp(those.logits - those.logits.max(1, keepdims=True))
    chances = (chances / chances.sum(1, keepdims=True))[np.arange(60), labels]
    known = sifting.Known(known)
    sieve = sifting.Sieve(sifting.parse(f"confidence({np.median(chances)})"), viewer, known)
    np.testing.assert_array_equal(sieve(images, labels), chances >= np.median(chances))
    assert sieve.dropped == {"confidence": int((chances < np.median(chances)).sum())}
    realism = neighbors.realism(those.features, known.seen.features)
    least = float(np.round(np.median(realism), 4))
    sieve = sifting.Sieve(sifting.parse(f"realism({least})"), viewer, known)
    np.testing.assert_array_equal(sieve(images, labels), realism >= least)


def test_copies_of_training_images_are_dropped(run, seen):
    viewer, known, images, labels, _ = seen
    train = sources.load("digits", split="train", image_size=16).images
    sieve = sifting.Sieve(sifting.parse("copies"), viewer, sifting.Known(known))
    assert not sieve(train[:20], labels[:20]).any()
    mixed = np.concatenate([train[:5], images[:5]])
    kept = sieve(mixed, labels[:10])
    close = neighbors.closeness(seen[4].features[:5], known.features)[0]
    np.testing.assert_array_equal(kept, [False] * 5 + (close >= 0.5).tolist())


def test_a_sample_is_dropped_by_the_first_that_refuses_it(seen):
    viewer, known, images, labels, _ = seen
    filters = sifting.parse("realism(100),confidence(1)")
    sieve = sifting.Sieve(filters, viewer, sifting.Known(known))
    assert not sieve(images, labels).any() and sieve.dropped["realism"] == 60
    assert sieve.dropped["confidence"] == 0


def test_a_sifted_data_set_has_its_classes_in_full(run, tmp_path):
    told = exporting.export(run, tmp_path / "all", 40)
    assert told["dropped"] == {} and told["keep"] == ""
    viewer = sifting.viewer_of(run.config)
    images, labels = sampling.generate(run, 400)
    those = viewer.see(sifting.of_arrays("", images, viewer, labels))
    known = sifting.training_images(run.config, viewer)
    realism = neighbors.realism(those.features, known.features)
    # One that every label meets in a third of its samples.
    least = min(np.quantile(realism[labels == k], 0.66) for k in range(10))
    least = float(np.floor(least * 1e4) / 1e4)
    told = exporting.export(run, tmp_path / "some", 40, keep=f"realism({least})")
    assert told["num_images"] == 40 and told["dropped"]["realism"] > 0
    read = sources.load(f"generated:{tmp_path / 'some'}", image_size=16)
    assert np.bincount(read.labels).tolist() == [4] * 10
    again = viewer.see(sifting.of_arrays("", read.images, viewer))
    assert (neighbors.realism(again.features, known.features) >= least - 1e-3).all()


def test_classes_of_another_network_are_no_confidence(run):
    config = run.config.copy_and_resolve_references()
    config.num_classes = 0
    with pytest.raises(UserError, match="confidence is of labels: the run knows none"):
        sifting.sieve("confidence", config)


def test_training_images_are_what_was_trained_on(run, tmp_path):
    """A part of a split, a mixture, the half of a folder that was."""
    viewer, config = sifting.viewer_of(run.config), run.config.copy_and_resolve_references()
    train = sources.load("digits", split="train", image_size=16)
    assert sifting.training_images(config, viewer).n == train.num_examples
    exporting.export(run, tmp_path / "made", 20)
    config.data.mix = (("digits", 0.9), (f"generated:{tmp_path / 'made'}", 0.1))
    assert sifting.training_images(config, viewer).n > train.num_examples
    config.data.mix = ()
    for half, rows in {"train": range(9), "test": range(9, 14)}.items():
        for row in rows:
            place = tmp_path / "folder" / half / str(train.labels[row]) / f"{row}.png"
            save_png(train.images[row], place)
    config.data.source = f"folder:{tmp_path / 'folder'}"
    assert sifting.training_images(config, viewer).n == 9
    assert sifting.real_images(config, viewer).n == 5
    told = f"folder:{tmp_path / 'folder' / 'test'}"
    assert configured.held_out_source(config) == told


def test_what_nothing_passes_ends(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_TRIES", 3)
    with pytest.raises(UserError, match=r"--keep lets 0 samples of \d+ pass \(realism dropped"):
        exporting.export(run, tmp_path / "none", 20, keep="realism(100)")
    with pytest.raises(UserError, match="was not finished"):
        sources.load(f"generated:{tmp_path / 'none'}", image_size=16)
    told = exporting.export(run, tmp_path / "none", 20)  # in its place
    assert told["complete"]
    assert sources.load(f"generated:{tmp_path / 'none'}", image_size=16).num_examples == 20
    with pytest.raises(UserError, match=r"--as-dataset .* is there already"):
        exporting.export(run, tmp_path / "none", 20)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("realist", "unknown filter 'realist'. Did you mean 'realism'"),
        ("confidence(2)", "least is a number from 0 to 1, not 2. Did you mean 1"),
        ("copies(0..1)", "a filter takes one number. Did you mean 0"),
    ],
)
def test_filters_that_make_no_sense(text, line):
    with pytest.raises(UserError, match=line):
        sifting.parse(text)


# ---- the loop ----


def test_a_loop_continues_where_it_was(tmp_path, capsys):
    workdir = tmp_path / "loop"
    first = self_training.self_train(small(), workdir, 1, real=0.5, num=40)
    made = sources.load(f"generated:{workdir / 'samples_1'}", image_size=16)
    assert made.num_examples == 40
    fed = runs.load(workdir / "generation_1").config
    assert [tuple(part) for part in fed.data.mix] == [
        ("digits", 0.5),
        (f"generated:{workdir.absolute() / 'samples_1'}", 0.5),
    ]
    stamp = (workdir / "samples_1" / "manifest.json").stat().st_mtime_ns
    both = self_training.self_train(small(), workdir, 2, real=0.5, num=40)
    assert both[:2] == first and len(both) == 3
    assert (workdir / "samples_1" / "manifest.json").stat().st_mtime_ns == stamp
    assert self_training.load(workdir) == both
    for name in ("generations.png", "samples.png"):
        assert (workdir / name).stat().st_size > 1000
    names, *rows = self_training.table(both)
    assert len(rows) == 3 and all(len(row) == len(names) for row in rows)
    with pytest.raises(UserError, match=r"holds a loop with real 0.5: give the same"):
        self_training.self_train(small(), workdir, 2, num=40)
    # Half of what was written is written anew.
    manifest = workdir / "samples_2" / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"complete": False}))
    self_training._export(
        runs.load(workdir / "generation_1"), runs.load(workdir / "generation_0"),
        workdir / "samples_2", 40, "", 1,
    )  # fmt: skip
    assert json.loads(manifest.read_text()) | {"command": ""} == told | {"command": ""}


def test_generated_alone(tmp_path):
    self_training.self_train(small(), tmp_path / "loop", 1, num=20)
    config = runs.load(tmp_path / "loop" / "generation_1").config
    assert config.data.source == f"generated:{(tmp_path / 'loop').absolute() / 'samples_1'}"
    assert config.eval.source == "digits" and not config.data.mix


def records(*recalls):
    one = dict.fromkeys(("fid", "precision", "density", "coverage", "diversity"), 0.5)
    rest = {"classes": [], "label_accuracy": None, "steps": 1, "n": 1, "dropped": {}}
    return [
        self_training.Generation(i, recall=recall, **one, **rest)
        for i, recall in enumerate(recalls)
    ]


def test_a_fall_is_told(monkeypatch):
    lines = []
    monkeypatch.setattr(self_training.tqdm, "write", lines.append)
    self_training._say(records(0.5, 0.45))
    assert len(lines) == 1
    self_training._say(records(0.5, 0.45, 0.3))
    assert "recall has fallen from 0.500 to 0.300: the model is collapsing" in lines[-1]


def test_diversity_is_of_variances():
    from aigc_jax.scoring import Seen

    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    real = rng.normal(size=(4000, 3)) + 10 * labels[:, None]
    fake = rng.normal(size=(4000, 3)) * np.where(labels, 0.5, 1)[:, None]
    sides = [Seen("", None, features=x, labels=labels) for x in (real, fake)]
    whole, classes = self_training._diversity(*sides)
    np.testing.assert_allclose(classes, [1, 0.25], rtol=0.1)
    np.testing.assert_allclose(whole, np.mean(classes))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--real=1"], "--real 1.0: a share from 0 to below 1"),
        (["--keep=nothing"], "unknown filter 'nothing'"),
        (["--config.eval.extractor="], "Nothing would measure the samples"),
        (["--config.task=unpaired"], "configs of one real source"),
        (["--generations=0"], "--generations 0: it must be at least 1"),
    ],
)
def test_mistakes_take_a_line(flags, line, tmp_path, capsys):
    workdir = tmp_path / "loop"
    argv = ["selftrain", "--config=digits_dcgan:smoke", f"--workdir={workdir}", *flags]
    assert cli.main(argv) == 2
    assert line in capsys.readouterr().err and not workdir.exists()


# ---- copying ----


def test_neighbors_of_samples(run, tmp_path, capsys):
    out, told = tmp_path / "near.png", tmp_path / "near.json"
    argv = [f"--workdir={run.workdir}", f"--out={out}", f"--json={told}", "--num=40"]
    assert cli.main(["neighbors", *argv]) == 0
    found = json.loads(told.read_text())
    assert found["n"] == 40 and found["n_train"] == len(
        sources.load("digits", split="train", image_size=16).labels
    )
    assert out.stat().st_size > 1000
    lines = capsys.readouterr().out
    assert ("some may be copies" in lines) == (found["z"] > 3)


def test_copied_training_images_are_found_out(run, tmp_path, monkeypatch):
    train = sources.load("digits", split="train", image_size=16).images
    monkeypatch.setattr(sampling, "generate", lambda run, n, **_: (train[:n], None))
    found = memorization.memorized(run, tmp_path / "x.png", 50)
    assert found.copies == 1 and found.copying > 0.99 and found.z > 5
    assert "some may be copies" in found.told()
    assert found.held_out_copies < 0.2


def test_nothing_held_out_is_told(run, tmp_path):
    run.config.eval.split, old = "train", run.config.eval.split
    try:
        with pytest.raises(UserError, match="no images are held out to compare with"):
            memorization.memorized(run, tmp_path / "x.png")
    finally:
        run.config.eval.split = old


def test_a_run_without_eyes(run, tmp_path):
    run.config.eval.extractor, old = "", run.config.eval.extractor
    try:
        with pytest.raises(UserError, match="Nothing looks at this run's samples"):
            memorization.memorized(run, tmp_path / "x.png")
    finally:
        run.config.eval.extractor = old
