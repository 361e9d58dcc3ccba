"""A run measured while it trains and afterwards: one number, whatever the devices."""

import functools
import json
import shutil
import sys

import jax
import numpy as np
import pytest

from aigc_jax import cli, evaluate, parallel, runs, scores, suite, train
from aigc_jax import config as configs
from aigc_jax.data import sources
from aigc_jax.data.dataset import subset
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


def batches(n=10, size=4):
    """Batches of `x`, index 0 to n - 1, the last one filled up."""
    for start in range(0, n, size):
        index = np.arange(start, start + size, dtype=np.int32)
        yield {"index": index, "x": index.astype(np.float32), "valid": np.float32(index < n)}


def sums(state, batch, rng):
    """(sum, count) of x, of its powers as a vector, and of every second example alone."""
    x, valid = batch["x"], batch["valid"]
    even = valid * (batch["index"] % 2 == 0)
    powers = jax.numpy.stack([x, x * x], 1)
    return {
        "x": (valid @ x, valid.sum()),
        "powers": (valid @ powers, valid.sum()),
        "even": (even @ x, even.sum()),
    }


def own(scores=None, devices=1):
    layout = parallel.layout("jit", jax.devices()[:devices])
    step = layout.replicated(sums)
    return evaluate.own_metrics(step, None, batches(), jax.random.key(0), layout, scores)


@pytest.mark.parametrize("devices", [1, 8])
def test_sums_may_be_vectors(devices):
    """A method's `scores` makes numbers of the means; each record says of how many it is."""
    seen = {}

    def scores(means):
        seen.update(means)
        mean, square = means["powers"]
        return {"even": {"value": float(means["even"])}, "variance": {"value": square - mean**2}}

    found = own(scores, devices)
    x = np.arange(10.0)
    np.testing.assert_allclose(seen["powers"], [x.mean(), (x * x).mean()], rtol=1e-6)
    assert seen["powers"].dtype == np.float64 and seen["x"].shape == ()
    assert found["variance"] == {"value": pytest.approx(x.var()), "n": 10}
    assert found["even"] == {"value": 4.0, "n": 5}


def test_vectors_need_scores():
    with pytest.raises(ValueError, match=r"'powers' is \(2,\).*scores"):
        own()


def test_own_metrics_of_some_of_the_images(judge):
    """`num` images, drawn alike each time, and they alone: against the method's own functions."""
    loaded = runs.load(judge)
    found = evaluate.run_scores(loaded, ["accuracy", "loss"], num=70)
    data = sources.load("digits", split="test", image_size=16)
    rows = subset(300, 70)
    logits, _ = loaded.method.predict(
        loaded.spec, loaded.state, data.images[rows].astype(np.float32) / 127.5 - 1
    )
    right = np.asarray(logits).argmax(-1) == data.labels[rows]
    assert found.scores["accuracy"] == {"value": pytest.approx(right.mean()), "n": 70}
    assert found.provenance["real"] == "digits/test at 16x16x1, 70 of 300"
    assert found.provenance["n_real"] == 70
    assert evaluate.run_scores(loaded, ["accuracy"], num=999).scores["accuracy"]["n"] == 300


MEASURED = """
import jax, jax.numpy as jnp
from flax import struct

wanted = []

class State(struct.PyTreeNode):
    step: jax.Array

def from_config(config, axis_name=None):
    return config.eval.nll_samples

def init_state(spec, rng, batch, frozen=None):
    return State(jnp.int32(0))

def train_step(spec, state, batch, rng):
    return State(state.step + 1), {"loss": jnp.float32(0)}

def sample(spec, state, rng, batch):
    raise ValueError("nobody asked for samples")

def eval_step(spec, state, batch, rng, metrics=()):
    wanted.append(metrics)
    valid = batch["valid"]
    found = {"cheap": 2 * valid.sum(), "nll": spec * valid.sum()}
    return {k: (v, valid.sum()) for k, v in found.items() if not metrics or k in metrics}
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """(a run of a method of the user's own, the names its eval_step was asked for)"""
    (tmp_path / "my_methods").mkdir()
    (tmp_path / "my_methods" / "__init__.py").touch()
    (tmp_path / "my_methods" / "measured.py").write_text(MEASURED)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = configs.default()
    config.update({"method": "my_methods.measured", "image_size": 16, "num_train_steps": 1})
    config.batch_size = 8
    train.run(config, tmp_path / "run")
    wanted = sys.modules["my_methods.measured"].wanted
    wanted.clear()
    yield tmp_path / "run", wanted
    for name in ("my_methods", "my_methods.measured"):
        del sys.modules[name]


def test_only_what_is_asked_for_is_computed(measured, tmp_path, capsys):
    workdir, wanted = measured
    command = ["evaluate", f"--fake={workdir}", f"--json={tmp_path / 'x.json'}"]
    assert cli.main([*command, "--metrics=cheap"]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["cheap"] == {"value": 2.0, "n": 300}
    assert wanted == [(), ("cheap",)]  # traced for the names that it knows, then compiled
    wanted.clear()
    assert cli.main([*command, "--metrics=nll,cheap", "--k=7", "--num=50"]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert list(found) == ["nll", "cheap", "provenance"]
    assert found["nll"] == {"value": 7.0, "n": 50} and wanted == [(), ("nll", "cheap")]
    wanted.clear()
    assert cli.main([*command, "--metrics=cheap,chaep"]) == 2
    assert wanted == [()]  # told before anything is computed
    assert "Unknown metric 'chaep'. Did you mean 'cheap'?" in capsys.readouterr().err


def test_samples_without_own_metrics(measured, judge):
    workdir, wanted = measured
    with pytest.raises(ValueError, match="nobody asked"):
        command = ["evaluate", f"--fake={workdir}", f"--extractor={judge}", "--metrics=fid"]
        cli.main(command)
    assert not wanted


def test_a_run_from_before_a_field_has_its_default(run, tmp_path):
    shutil.copytree(run, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    content = json.loads(path.read_text())
    del content["eval"]["nll_samples"], content["eval"]["precision"]
    path.write_text(json.dumps(content))
    config = configs.of_run(tmp_path / "old")
    assert (config.eval.nll_samples, config.eval.precision) == (100, "highest")
    assert config.eval.num_samples == 100 and config.generator.width == 4
    path.write_text("{")
    with pytest.raises(UserError, match=r"config\.json can't be read"):
        configs.of_run(tmp_path / "old")
    for place in (tmp_path, path):
        with pytest.raises(UserError, match="not a run's workdir"):
            configs.of_run(place)


def test_nll_samples_are_at_least_one(judge, tmp_path):
    with pytest.raises(UserError, match=r"eval.nll_samples is 0: it must be at least 1"):
        train.run(gan(judge, eval__nll_samples=0), tmp_path / "run")
