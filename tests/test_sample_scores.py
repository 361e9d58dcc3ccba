"""A run that translates, measured: whose images beside whose, baselines first, either way."""

import json
import sys

import numpy as np
import pytest

from aigc_jax import cli, evaluate, networks, runs, scores, suite, train
from aigc_jax import config as configs
from aigc_jax.data import sources
from aigc_jax.errors import UserError
from aigc_jax.metrics import protocols
from aigc_jax.scoring import Viewer
from aigc_jax.writers import save_png

pytestmark = pytest.mark.usefixtures("compiled_once")

# One way makes images darker, the other brighter: what comes out is known in closed form.
METHOD = """
import dataclasses

import jax, jax.numpy as jnp
from flax import struct
from aigc_jax.errors import UserError

class State(struct.PyTreeNode):
    step: jax.Array
    shift: jax.Array

@dataclasses.dataclass(frozen=True)
class Shift:
    direction: str

def from_config(config, axis_name=None):
    return Shift(config.eval.direction)

def init_state(spec, rng, batch, frozen=None):
    return State(jnp.int32(0), jnp.float32(0.5))

def train_step(spec, state, batch, rng):
    return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

def multiple(spec):
    return 1

def translate(spec, state, images, direction="a2b"):
    return jnp.clip(images + (-1 if direction == "a2b" else 1) * state.shift, -1, 1)

def sample(spec, state, rng, batch):
    return translate(spec, state, batch[spec.direction[0]], spec.direction)

def baselines(spec, state, batch):
    source = batch[spec.direction[0]]
    return {"copied": source, "constant": jnp.full_like(source, 0.2)}

def eval_step(spec, state, batch, rng):
    def far(x, y):
        return jnp.abs(x - y).mean((1, 2, 3)) @ batch["valid"], batch["valid"].sum()
    source, target = batch[spec.direction[0]], batch.get(spec.direction[-1])
    made = sample(spec, state, rng, batch)
    found = {"cycle_l1": far(source, translate(spec, state, made, spec.direction[::-1]))}
    if target is not None:
        found["l1"] = far(made, target)
        found |= {f"{k}_l1": far(x, target) for k, x in baselines(spec, state, batch).items()}
    return found
"""
SIZE = (8, 8)


@pytest.fixture(scope="module", autouse=True)
def my_method(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "a_shift").mkdir()
    (folder / "a_shift" / "__init__.py").touch()
    (folder / "a_shift" / "bright.py").write_text(METHOD)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def digits():
    found = sources.load("digits", split="test", image_size=8)
    return found.images, found.labels


@pytest.fixture(scope="module")
def bright(digits, tmp_path_factory):
    """Domain a: the digits, brighter; the same with labels, without, and the first 40 of them."""
    folder = tmp_path_factory.mktemp("bright")
    images = np.minimum(digits[0].astype(int) + 60, 255).astype(np.uint8)
    np.savez(folder / "all.npz", images=images, labels=digits[1])
    np.savez(folder / "plain.npz", images=images)
    np.savez(folder / "some.npz", images=images[:40], labels=digits[1][:40])
    return folder, images


@pytest.fixture(scope="module")
def judge(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "judge"
    config = configs.load("digits_classifier:smoke")
    with config.unlocked():
        config.image_size, config.model.width, config.num_train_steps = 8, 4, 8
        config.optimizer.schedule = "constant"
        config.log_every = config.checkpoint_every = config.sample_every = 0
    train.run(config, workdir)
    return workdir


def shift(judge, a, **fields):
    config = configs.default()
    with config.unlocked():
        config.update(method="a_shift.bright", task="unpaired", image_size=8, batch_size=8)
        config.update(num_train_steps=1, log_every=0, sample_every=0)
        config.data.update(a=f"npz:{a}", b="digits")
        config.eval.update(a=f"npz:{a}", extractor=str(judge), batch_size=36)
        config.eval.update(fields)
    return config


@pytest.fixture(scope="module")
def run(my_method, judge, bright, tmp_path_factory):
    """Evaluated once, at its end, as its config says."""
    workdir = tmp_path_factory.mktemp("runs") / "shift"
    train.run(shift(judge, bright[0] / "all.npz", paired=True), workdir)
    return workdir


def beside(judge, folder, real, fake):
    """The Frechet distance of arrays, by way of files."""
    for name, images in (("real", real), ("fake", fake)):
        np.savez(folder / f"{name}.npz", arr_0=images)
    protocol = protocols.find("tf1")
    viewer = Viewer(networks.load(str(judge), None, protocol), protocol)
    found = evaluate.image_scores(
        ["fid"], str(folder / "real.npz"), str(folder / "fake.npz"), viewer, suite.Settings()
    )
    return found.scores["fid"]["value"]


def right(judge, images, labels):
    loaded = runs.load(judge)
    logits, _ = loaded.method.predict(
        loaded.spec, loaded.state, images.astype(np.float32) / 127.5 - 1
    )
    return float((np.asarray(logits).argmax(-1) == labels).mean())


def shifted(images, by):
    x = np.clip(images.astype(np.float32) / 127.5 - 1 + np.float32(by), -1, 1)
    return np.round((x + 1) * 127.5).astype(np.uint8)


def images_of(bright, digits):
    constant = np.full_like(digits[0], round(1.2 * 127.5))
    return {"copied_": bright[1], "constant_": constant, "": shifted(bright[1], -0.5)}


def test_baselines_stand_first_and_all_is_of_the_right_images(run, judge, bright, digits, tmp_path):
    """Every number against the images themselves, measured as files or by hand."""
    (record,) = scores.read(run)
    found, made = record["scores"], record["provenance"]
    assert list(found) == [
        "cycle_l1", "copied_l1", "constant_l1", "l1", "copied_fid", "constant_fid", "fid",
        "copied_label_accuracy", "constant_label_accuracy", "label_accuracy",
    ]  # fmt: skip
    truth = digits[0].astype(float) / 127.5
    for prefix, images in images_of(bright, digits).items():
        fid = beside(judge, tmp_path, digits[0], images)
        assert found[f"{prefix}fid"]["value"] == pytest.approx(fid, rel=1e-3, abs=1e-4)
        assert found[f"{prefix}fid"]["n_fake"] == found[f"{prefix}fid"]["n_real"] == 300
        accuracy = found[f"{prefix}label_accuracy"]
        assert accuracy["value"] == pytest.approx(right(judge, images, digits[1]), abs=0.01)
        assert accuracy["real"] == pytest.approx(right(judge, *digits), abs=0.01)
        distance = abs(images / 127.5 - truth).mean()
        assert found[f"{prefix}l1"] == {"value": pytest.approx(distance, abs=0.005), "n": 300}
    assert found["copied_l1"]["value"] > found["l1"]["value"] > 0
    assert made["direction"] == "a2b" and made["real"] == "digits/test at 8x8x1"
    assert made["inputs"].startswith(f"npz:{bright[0] / 'all.npz'}")


def test_the_other_way_is_another_measurement(run, judge, bright, digits, tmp_path):
    out = tmp_path / "x.json"
    command = ["evaluate", f"--fake={run}", "--metrics=fid", f"--json={out}"]
    assert cli.main([*command, "--direction=b2a"]) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["copied_fid", "constant_fid", "fid", "provenance"]
    fid = beside(judge, tmp_path, bright[1], shifted(digits[0], 0.5))
    assert found["fid"]["value"] == pytest.approx(fid, rel=1e-3)
    assert found["provenance"]["direction"] == "b2a"
    assert found["provenance"]["inputs"].startswith("digits/test")
    assert found["provenance"]["real"].startswith("npz:")
    tables = scores.compare([run]).split("Measured by")[1:]
    assert ["a2b" in table for table in tables] != ["b2a" in table for table in tables]
    assert configs.of_run(run).eval.direction == "a2b"


def test_what_is_asked_for_comes_with_its_baselines(run, tmp_path):
    found = evaluate.run_scores(runs.load(run), ["l1", "fid"]).scores
    assert list(found) == ["copied_l1", "constant_l1", "l1", "copied_fid", "constant_fid", "fid"]
    found = evaluate.run_scores(runs.load(run), ["prdc"], num=70)
    assert list(found.scores) == ["copied_prdc", "constant_prdc", "prdc"]
    assert "copied_prdc_recall" in scores.flat(found.scores)
    assert found.provenance["inputs"].endswith("at 8x8x1")
    assert (found.provenance["n_fake"], found.provenance["n_real"]) == (70, 70)
    found = evaluate.run_scores(runs.load(run), ["fid"], num=5000)  # there are no more to translate
    assert found.scores["fid"]["n_fake"] == found.scores["fid"]["n_real"] == 300


def test_what_does_not_depend_on_the_state_is_seen_once(run, monkeypatch):
    seen, see = [], evaluate.Viewer.see
    monkeypatch.setattr(
        evaluate.Viewer, "see", lambda self, x, *a: seen.append(x.name) or see(self, x, *a)
    )
    again = evaluate.run_scores(runs.load(run), ["fid"]).scores
    assert seen == ["constant", "samples"]
    first = scores.read(run)[0]["scores"]
    for name in again:
        assert again[name]["value"] == pytest.approx(first[name]["value"], rel=1e-4, abs=1e-5)


def test_domains_of_different_length_and_no_truth(judge, bright, tmp_path):
    """All of both are used; what needs the truth is left out."""
    train.run(shift(judge, bright[0] / "some.npz"), tmp_path / "run")
    found = scores.read(tmp_path / "run")[0]["scores"]
    assert (found["fid"]["n_fake"], found["fid"]["n_real"]) == (40, 300)
    assert found["cycle_l1"]["n"] == 40 and "l1" not in found
    assert found["copied_label_accuracy"]["n_fake"] == 40


def test_sources_without_labels(judge, bright, tmp_path):
    """The Frechet distance alone; and one line where label accuracy is asked for by name."""
    train.run(shift(judge, bright[0] / "plain.npz"), tmp_path / "run")
    found = scores.read(tmp_path / "run")[0]["scores"]
    assert list(found) == ["cycle_l1", "copied_fid", "constant_fid", "fid"]
    found = evaluate.run_scores(evaluate.reconfigured(runs.load(tmp_path / "run"), direction="b2a"))
    assert "label_accuracy" not in found.scores  # the run knows no classes
    with pytest.raises(UserError, match=r"label_accuracy: .* has no labels"):
        evaluate.run_scores(runs.load(tmp_path / "run"), ["label_accuracy"])


def test_labels_of_the_source_decide(judge, bright, tmp_path):
    """The run knows the classes of a; the other way, its sources have none."""
    config = shift(judge, bright[0] / "all.npz")
    config.data.b = config.eval.b = f"npz:{bright[0] / 'plain.npz'}"
    train.run(config, tmp_path / "run")
    assert "label_accuracy" in scores.read(tmp_path / "run")[0]["scores"]
    other = evaluate.reconfigured(runs.load(tmp_path / "run"), direction="b2a")
    assert list(evaluate.run_scores(other).scores) == [
        "cycle_l1", "copied_fid", "constant_fid", "fid"
    ]  # fmt: skip


@pytest.mark.parametrize(("names", "told"), [("{}", True), ("the {}", False)])
def test_labels_of_other_classes_tell_nothing(judge, bright, digits, tmp_path, names, told):
    """Number 3 of the source may be another class of the judge's."""
    for i in range(40):
        place = tmp_path / "a" / names.format(digits[1][i]) / f"{i}.png"
        save_png(bright[1][i], place)
    config = shift(judge, "")
    config.data.a = config.eval.a = f"folder:{tmp_path / 'a'}"
    train.run(config, tmp_path / "run")
    found = scores.read(tmp_path / "run")[0]["scores"]
    assert ("label_accuracy" in found, "copied_label_accuracy" in found) == (told, told)
    asked = evaluate.run_scores(runs.load(tmp_path / "run"), ["label_accuracy"])
    assert asked.scores["label_accuracy"]["n_fake"] == 40


def test_labels_of_one_class_tell_nothing(judge, bright, tmp_path):
    np.savez(tmp_path / "a.npz", images=bright[1][:40], labels=np.zeros(40, int))
    train.run(shift(judge, tmp_path / "a.npz"), tmp_path / "run")
    found = scores.read(tmp_path / "run")[0]["scores"]
    assert list(found) == ["cycle_l1", "copied_fid", "constant_fid", "fid"]


def test_the_judge_of_one_domain_does_not_judge_the_other(run, tmp_path, capsys):
    """Those that it was not trained on would only look unlike them."""
    config = configs.of_run(run)
    for own, ways in (("a2b", "ab"), ("b2a", "ba")):
        workdir = tmp_path / own
        config.eval.update(direction=own, extractor=str(workdir / "judge"))
        runs.write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))
        capsys.readouterr()
        other = own[::-1]
        assert cli.main(["evaluate", f"--fake={workdir}", f"--direction={other}"]) == 2
        line = capsys.readouterr().err
        assert f"is of domain {ways[1]}: give --extractor inception" in line
        assert f"of domain {ways[0]}." in line and line.count("\n") == 1
        evaluate.check_asked(str(workdir), [], direction=own)
        evaluate.check_asked(str(workdir), ["cycle_l1"], direction=other)
        evaluate.check_asked(str(workdir), [], direction=other, extractor="inception")
    evaluate.check_asked(str(run), [], direction="b2a")  # it was given a judge from elsewhere


def test_what_can_not_be_evaluated_is_told_before_the_first_step(judge, bright, tmp_path, capsys):
    config = shift(judge, bright[0] / "some.npz")
    config.eval.b = f"npz:{tmp_path / 'nowhere.npz'}"
    config.num_train_steps = config.eval.every = 2
    assert int(train.run(config, tmp_path / "run").step) == 2
    told = capsys.readouterr().out
    first, last = (told.index(words) for words in ("will not be evaluated: ", "Not evaluated: "))
    assert first < last and told.count("config.eval.b: ") == 2 and "nowhere.npz" in told[first:last]
    train.run(config, tmp_path / "run")  # there is nothing left to evaluate
    assert "evaluated: " not in capsys.readouterr().out


def test_other_real_images(run, judge, bright, digits, tmp_path):
    """What is translated stays the run's own."""
    np.savez(tmp_path / "half.npz", arr_0=digits[0][:150])
    made = shifted(bright[1], -0.5)
    for real, images in ((str(tmp_path / "half.npz"), digits[0][:150]), ("digits", digits[0])):
        found = evaluate.run_scores(runs.load(run), ["fid"], real=real)
        fid = beside(judge, tmp_path, images, made)
        assert found.scores["fid"]["value"] == pytest.approx(fid, rel=1e-3)
        assert found.scores["fid"]["n_fake"] == 300
        assert found.scores["fid"]["n_real"] == len(images)
        assert found.provenance["inputs"].startswith("npz:")


MISTAKES = {
    "direction": (["--direction=a2c"], ["'a2c'", "a2b or b2a"]),
    "a folder's direction": (["--fake={npz}", "--direction=b2a"], ["--direction b2a", "{npz}"]),
    "a classifier's direction": (["--fake={judge}", "--direction=b2a"], ["'classifier'"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, run, judge, bright, capsys):
    places = {"npz": bright[0] / "all.npz", "judge": judge}
    flags, words = MISTAKES[mistake]
    capsys.readouterr()
    assert cli.main(["evaluate", f"--fake={run}", *[x.format(**places) for x in flags]]) == 2
    line = capsys.readouterr().err
    assert line.startswith("aigc evaluate: ") and line.count("\n") == 1
    assert all(word.format(**places) in line for word in words), line
