"""A run measured while it trains and afterwards: one number, whatever the devices."""

import functools
import json
import sys

import jax
import numpy as np
import pytest

from aigc_jax import cli, evaluate, parallel, runs, scores, suite, train
from aigc_jax import config as configs
from aigc_jax.errors import UserError
from aigc_jax.writers import read_metrics

pytestmark = pytest.mark.usefixtures("compiled_once")


def gan(judge, **fields):
    config = configs.load("digits_dcgan:smoke")
    with config.unlocked():
        config.image_size = 16
        config.generator.width = config.discriminator.width = 4
        config.generator.latent_dim = 8
        config.eval.extractor = str(judge)
        config.eval.num_samples = 100
        config.eval.batch_size = 36
        for name, value in fields.items():
            *sections, last = name.split("__")
            functools.reduce(lambda c, s: c[s], sections, config)[last] = value
    return config


@pytest.fixture(scope="module")
def judge(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "judge"
    config = configs.load("digits_classifier:smoke")
    with config.unlocked():
        config.image_size, config.model.width = 16, 4
    train.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def run(judge, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "gan"
    metrics = "fid,is,kid,prdc,label_accuracy"
    train.run(gan(judge, eval__every=4, eval__metrics=metrics, eval__best="eval_fid"), workdir)
    return workdir


def test_in_training_every_so_often(run, judge):
    records = scores.read(run)
    assert [record["step"] for record in records] == [4, 8]
    assert [record["images_seen"] for record in records] == [32, 64]
    assert list(records[0]["scores"]) == ["fid", "is", "kid", "prdc", "label_accuracy"]
    assert records[0]["scores"]["fid"]["n_fake"] == 100
    assert records[0]["provenance"]["real"] == "digits/test at 16x16x1, 100 of 300"
    rows = {row["step"]: row for row in read_metrics(run) if "eval_fid" in row}
    assert rows[8]["eval_fid"] == records[1]["scores"]["fid"]["value"]
    assert rows[8]["eval_prdc_recall"] == records[1]["scores"]["prdc"]["recall"]
    assert (run / "checkpoints" / "8").is_dir()
    assert len(list((run / "reference").glob("*_features.npz"))) == 1


def test_afterwards_the_same_number(run, tmp_path):
    before = scores.read(run)[1]["scores"]
    assert cli.main(["evaluate", f"--fake={run}", f"--json={tmp_path / 'x.json'}"]) == 0
    after = json.loads((tmp_path / "x.json").read_text())
    for name in ("fid", "kid", "is"):
        assert after[name]["value"] == pytest.approx(before[name]["value"], rel=1e-4, abs=1e-6)
    assert after["label_accuracy"] == before["label_accuracy"]


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("pmap", 8), ("jit", 8), ("fsdp", 8)])
def test_whatever_the_devices(run, mode, devices):
    loaded = runs.load(run)
    layout = parallel.layout(mode, jax.devices()[:devices])
    settings = suite.Settings()
    evaluator = evaluate.Evaluator(
        loaded.config, loaded.method, loaded.spec, layout, metrics=["fid", "kid"], settings=settings
    )
    found = evaluator(layout.place_state(loaded.state), jax.random.key(0)).scores
    told = scores.read(run)[1]["scores"]
    assert found["fid"]["value"] == pytest.approx(told["fid"]["value"], rel=1e-4)
    assert found["kid"]["value"] == pytest.approx(told["kid"]["value"], rel=1e-4, abs=1e-6)


def test_the_reference_is_made_once(run, judge, monkeypatch):
    loaded = runs.load(run)
    seen = []
    see = evaluate.Viewer.see
    monkeypatch.setattr(
        evaluate.Viewer, "see", lambda self, x, *a: seen.append(x.name) or see(self, x, *a)
    )
    for _ in range(2):
        found = evaluate.run_scores(loaded, ["fid"])
    assert seen == ["samples", "samples"] and found.scores["fid"]["n_real"] == 100


def test_more_samples_than_real_images(run):
    loaded = runs.load(run)
    found = evaluate.run_scores(loaded, ["fid"], num=400)
    assert (found.scores["fid"]["n_fake"], found.scores["fid"]["n_real"]) == (400, 300)


def test_no_real_images_are_read_for_the_inception_score(run):
    found = evaluate.run_scores(runs.load(run), ["is"], num=50)
    assert list(found.scores) == ["is"] and "real" not in found.provenance


NETWORK = """
from aigc_jax.metrics.extractors import Extractor

def extractor(weights, protocol, precision):
    def apply(variables, images):
        return {"features": images.reshape(len(images), -1)[:, ::37].astype("float32")}
    return Extractor("pixels", {}, apply, channels=1, provenance={"extractor": "pixels"})
"""


def test_a_network_of_the_users_own(run, judge, tmp_path, monkeypatch):
    (tmp_path / "my_networks").mkdir()
    (tmp_path / "my_networks" / "__init__.py").touch()
    (tmp_path / "my_networks" / "pixels.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "x.json"
    argv = [f"--fake={run}", "--extractor=my_networks.pixels", "--metrics=fid", f"--json={out}"]
    assert cli.main(["evaluate", *argv]) == 0
    found = json.loads(out.read_text())
    assert found["provenance"]["extractor"] == "pixels" and found["fid"]["value"] > 0
    assert "my_networks" in {name.partition(".")[0] for name in sys.modules}


def test_two_folders_by_a_classifier(run, judge, tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        argv = [f"--workdir={run}", f"--out={tmp_path / name}", "--n=40", f"--seed={seed}"]
        assert cli.main(["sample", *argv]) == 0
    argv = [f"--real={tmp_path / 'a'}", f"--extractor={judge}", "--metrics=fid,prdc"]
    out = tmp_path / "x.json"
    assert cli.main(["evaluate", *argv, f"--fake={tmp_path / 'b'}", f"--json={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["fid"]["n_real"] == found["fid"]["n_fake"] == 40 and found["fid"]["value"] > 0
    assert cli.main(["evaluate", *argv, f"--fake={tmp_path / 'a'}", f"--json={out}"]) == 0
    found = json.loads(out.read_text())
    assert abs(found["fid"]["value"]) < 1e-6
    # As a run, it draws the very images of the folder: seed 0, labels in turn.
    argv = [f"--real={run}", f"--fake={tmp_path / 'a'}", f"--extractor={judge}", "--num=40"]
    assert cli.main(["evaluate", *argv, f"--json={out}", "--metrics=fid"]) == 0
    assert abs(json.loads(out.read_text())["fid"]["value"]) < 1e-3


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("metrics", "fid,fdi", "Unknown metric 'fdi'"),
        ("protocol", "tf2", "no protocol 'tf2'"),
        ("extractor", "nowhere", "nowhere"),
    ],
)
def test_mistakes_are_told_before_the_first_step(judge, tmp_path, field, value, words):
    with pytest.raises(UserError, match=words):
        train.run(gan(judge, **{f"eval__{field}": value}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_own_metrics_by_name(judge):
    loaded = runs.load(judge)
    assert list(evaluate.run_scores(loaded, ["accuracy"]).scores) == ["accuracy"]
    with pytest.raises(UserError, match=r"'acuracy'\. Did you mean 'accuracy'"):
        evaluate.run_scores(loaded, ["acuracy"])
    found = evaluate.run_scores(loaded).scores
    assert set(found) == {"accuracy", "loss"} and found["loss"]["n"] == 300
    assert np.isfinite(found["loss"]["value"])
