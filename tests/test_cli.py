"""The real command line: what it makes, and one clear line and exit code 2 for every mistake."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from aigc_jax import cli
from aigc_jax.scores import read as read_scores

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = [
    "--config.image_size=16",
    "--config.generator.width=4",
    "--config.discriminator.width=4",
    "--config.generator.latent_dim=8",
    "--config.eval.extractor=",
]
JUDGE = ["--config.image_size=16", "--config.model.width=4"]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def aigc(*argv, cwd=None):
    """A process of its own: (exit code, stdout, stderr)."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-m", "aigc_jax", *map(str, argv)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def train(*argv):
    assert cli.main(["train", *map(str, argv)]) == 0


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "gan"
    train("--config=digits_dcgan:smoke", *TINY, f"--workdir={workdir}")
    return workdir


@pytest.fixture(scope="module")
def judge_run(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("runs") / "judge"
    fast = ["--config.num_train_steps=16", "--config.optimizer.schedule=constant"]
    train("--config=digits_classifier:smoke", *JUDGE, *fast, f"--workdir={workdir}")
    return workdir


# ---- what it makes ----


def test_a_newcomers_journey_from_another_folder(tmp_path):
    """Configs by name, the default workdir, what the last line says to look at and run."""
    code, stdout, stderr = aigc("train", "--config=digits_dcgan:smoke", *TINY, cwd=tmp_path)
    assert code == 0, stderr
    left = {path.name for path in (tmp_path / "runs" / "digits_dcgan_smoke").iterdir()}
    wanted = ["config.json", "run.json", "metrics.jsonl", "losses.png", "checkpoints", "samples"]
    assert left == {*wanted, "tensorboard"}
    assert "img/s" in stderr  # the progress bar
    last = stdout.splitlines()[-1]
    look, _, following = last.partition(". Next: ")
    for path in look.removeprefix("Look at ").split(" and "):
        assert (tmp_path / path).is_file()
    code, stdout, stderr = aigc(*following.split()[1:], cwd=tmp_path)
    assert code == 0, stderr
    assert stdout == "64 images of step 8 in samples.png\n" and stderr == ""
    with Image.open(tmp_path / "samples.png") as image:
        assert image.size == (8 * 18 + 2, 8 * 18 + 2)


def sample(workdir, out, *argv):
    command = ["sample", f"--workdir={workdir}", f"--out={out}", *map(str, argv)]
    assert cli.main(command) == 0
    if out.suffix != ".npz":
        return None
    with np.load(out) as arrays:
        return {name: arrays[name] for name in arrays}


def test_sample_to_each_kind_of_file(gan_run, tmp_path):
    arrays = sample(gan_run, tmp_path / "x.npz", "--n=12")
    assert arrays["arr_0"].shape == (12, 16, 16, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [*range(10), 0, 1]

    sample(gan_run, tmp_path / "new" / "x.png", "--n=12")
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert image.size == (4 * 18 + 2, 3 * 18 + 2) and image.mode == "L"
        grid = np.asarray(image)
    np.testing.assert_array_equal(grid[2:18, 2 + 18 : 18 + 18], arrays["arr_0"][1, ..., 0])

    sample(gan_run, tmp_path / "folder", "--n=12")
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [f"{i:06d}.png" for i in range(12)]
    with Image.open(tmp_path / "folder" / "000011.png") as image:
        np.testing.assert_array_equal(np.asarray(image), arrays["arr_0"][11, ..., 0])


def test_sample_is_settled_by_seed_label_and_place(gan_run, tmp_path):
    def draw(name, *argv):
        return sample(gan_run, tmp_path / f"{name}.npz", *argv)["arr_0"].astype(int)

    eight = draw("a", "--n=8", "--label=3", "--seed=1")
    np.testing.assert_array_equal(eight, draw("b", "--n=8", "--label=3", "--seed=1"))
    # Another number of images is another program, whose rounding may differ in the last bit.
    assert abs(draw("c", "--n=20", "--label=3", "--seed=1")[:8] - eight).max() <= 1
    assert (draw("d", "--n=8", "--label=3", "--seed=2") != eight).any()
    assert (draw("e", "--n=8", "--label=4", "--seed=1") != eight).any()
    assert (draw("f", "--n=8", "--label=3", "--seed=1", "--truncation=0.1") != eight).any()
    in_turn = draw("g", "--n=8", "--seed=1")
    assert abs(in_turn[3] - eight[3]).max() <= 1 and (in_turn[4] != eight[4]).any()
    assert np.ptp(eight) > 0


def test_sample_of_an_older_step(gan_run, tmp_path, capsys):
    old = sample(gan_run, tmp_path / "old.npz", "--step=4")
    assert "64 images of step 4" in capsys.readouterr().out
    assert (old["arr_0"] != sample(gan_run, tmp_path / "new.npz")["arr_0"]).any()


def test_evaluate_with_a_judge(gan_run, judge_run, tmp_path, capsys):
    out = tmp_path / "scores.json"
    command = ["evaluate", f"--fake={gan_run}", f"--extractor={judge_run}", "--num=50"]
    assert cli.main([*command, f"--json={out}"]) == 0
    scores = json.loads(out.read_text())
    assert list(scores) == ["fid", "label_accuracy", "provenance"]
    assert scores["fid"]["value"] > 0 and next(iter(scores["fid"])) == "value"
    assert scores["fid"]["n_fake"] == scores["fid"]["n_real"] == 50
    accuracy = scores["label_accuracy"]
    assert 0 <= accuracy["value"] <= 1 and 0 < accuracy["real"] <= 1
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert float(told["fid"].split()[1]) == pytest.approx(scores["fid"]["value"], rel=1e-4)
    made = scores["provenance"]
    assert made["extractor"] == "classifier" and made["weights"] == str(judge_run)
    assert (
        made["protocol"] == "tf1"
        and made["fake"] == f"{gan_run} step 8"
        and len(made["sha256"]) == 64
    )
    assert made["real"] == "digits/test at 16x16x1, 50 of 300"
    last = read_scores(gan_run)[-1]
    assert last["scores"]["fid"] == scores["fid"] and last["step"] == 8
    assert last["images_seen"] == 8 * 8 and last["provenance"]["seed"] == 0


def test_evaluate_against_images_of_a_file(gan_run, judge_run, tmp_path):
    """Its own samples, of another seed, are nearer to a run than digits are."""
    sample(gan_run, tmp_path / "own.npz", "--seed=5")
    command = ["evaluate", f"--fake={gan_run}", f"--extractor={judge_run}", "--num=64", "--json"]
    distances = []
    for i, real in enumerate([f"--real=npz:{tmp_path / 'own.npz'}", "--real=digits"]):
        assert cli.main([*command, str(tmp_path / f"{i}.json"), real]) == 0
        distances.append(json.loads((tmp_path / f"{i}.json").read_text())["fid"]["value"])
    assert distances[0] < distances[1]


def test_statistics_stand_in_for_the_images_they_were_made_of(gan_run, judge_run, tmp_path):
    real, fake = tmp_path / "real.npz", tmp_path / "fake.npz"
    sample(gan_run, real, "--seed=5", "--n=80")
    sample(gan_run, fake, "--seed=6", "--n=70")
    judge = f"--extractor={judge_run}"
    assert cli.main(["stats", str(real), f"--out={tmp_path / 'stats.npz'}", judge]) == 0
    values = []
    for i, side in enumerate([real, tmp_path / "stats.npz"]):
        out = tmp_path / f"{i}.json"
        command = ["evaluate", f"--fake={fake}", f"--real={side}", judge, f"--json={out}"]
        assert cli.main([*command, "--metrics=fid"]) == 0
        values.append(json.loads(out.read_text())["fid"])
    assert values[0]["value"] == pytest.approx(values[1]["value"], rel=1e-5)
    assert values[0]["n_real"] == values[1]["n_real"] == 80
    assert cli.main(["evaluate", f"--fake={gan_run}", f"--real={side}", judge, "--num=60"]) == 0
    assert read_scores(gan_run)[-1]["scores"]["fid"]["n_real"] == 80


def test_statistics_of_another_network_are_refused(gan_run, judge_run, tmp_path, capsys):
    argv = ["stats", str(gan_run), f"--out={tmp_path / 'x.npz'}", f"--extractor={judge_run}"]
    assert cli.main([*argv, "--num=20"]) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        stats = dict(arrays)
    meta = json.loads(str(stats["meta"])) | {"sha256": "other"}
    np.savez(tmp_path / "y.npz", **stats | {"meta": np.array(json.dumps(meta))})
    command = ["evaluate", f"--fake={gan_run}", f"--extractor={judge_run}", "--num=20"]
    capsys.readouterr()
    code, _ = in_process([*command, f"--real={tmp_path / 'y.npz'}", "--metrics=fid"], capsys)
    assert code == 2


def test_evaluate_a_classifier_by_its_own_metrics(judge_run, capsys):
    assert cli.main(["evaluate", f"--fake={judge_run}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = dict(line.split() for line in lines[: lines.index("")])
    assert set(told) == {"accuracy", "loss"}
    metrics = (judge_run / "metrics.jsonl").read_text()
    last = json.loads(metrics.splitlines()[-1])
    assert float(told["accuracy"]) == pytest.approx(last["eval_accuracy"], abs=0.01)


VERBS = ["", "train", "sample", "reconstruct", "interpolate", "evaluate", "stats", "compare"]
VERBS += ["selfcheck", "translate"]


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb.split(), "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    wanted = {
        "": ["train", "sample", "evaluate", "start here"],
        "train": ["--config", "--workdir", "--config.batch_size=128", ":smoke", "--coordinator"],
        "sample": ["--label", "--n", "--seed", "--out", "--truncation", "--top_k", "--guidance"],
        "reconstruct": ["--workdir", "--input", "--out", "--label", "--step"],
        "interpolate": ["--workdir", "--out", "--rows", "--columns", "--label", "--input"],
        "translate": ["--workdir", "--weights", "--input", "--out", "--direction", "--pairs"],
        "evaluate": ["--fake", "--real", "--extractor", "--protocol", "--weights", "--direction"],
        "stats": ["--out", "--protocol"],
        "compare": ["WORKDIR"],
        "selfcheck": ["--weights", "--cifar10"],
    }[verb]
    assert all(word in told for word in wanted)


def test_no_command_is_help(capsys):
    assert cli.main([]) == 0
    assert "start here" in capsys.readouterr().out


# ---- mistakes ----


def in_process(argv, capsys):
    capsys.readouterr()
    try:
        code = cli.main([str(arg) for arg in argv])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    return code, capsys.readouterr().err


def assert_one_line(code, stderr, *words):
    assert code == 2, stderr
    assert stderr.count("\n") == 1 and stderr.startswith("aigc"), stderr
    for word in words:
        assert word in stderr, stderr


# What is wrong with a launch of `aigc train`, and the words that its line must hold.
TRAIN_MISTAKES = {
    "key": (["--config.batchsize=8"], ["'batchsize'", "Did you mean 'batch_size'"]),
    "section": (["--config.generator.widht=8"], ["widht", "Did you mean 'generator.width'"]),
    "flag": (["--workdirs=x"], ["workdirs"]),
    "word": (["digits"], ["'digits'", "--config.field=value"]),
    "type": (["--config.batch_size=many"], ["batch_size", "many"]),
    "config": (["--config=digits_dcgam"], ["'digits_dcgam'", "Did you mean 'digits_dcgan'"]),
    "config's argument": (["--config=digits_dcgan:smok"], ["'smok'", "'smoke'"]),
    "config not python": (["--config=README.md"], ["README.md"]),
    "source": (["--config.data.source=digit"], ["'digit'", "'digits'"]),
    "kind": (["--config.data.source=tdfs:mnist"], ["tdfs:mnist", "tfds"]),
    "split": (["--config.data.split=tran"], ["'tran'", "'train'"]),
    "task": (["--config.task=labels"], ["'labels'", "'label'"]),
    "method": (["--config.method=gann"], ["'gann'", "'gan'"]),
    "loss": (["--config.loss=hing"], ["'hing'", "'hinge'"]),
    "model": (["--config.generator.name=dcgann"], ["'dcgann'", "'dcgan'"]),
    "optimizer": (["--config.optimizer.name=adamm"], ["'adamm'", "'adam"]),
    "schedule": (["--config.optimizer.schedule=cosin"], ["'cosin'", "'cosine'"]),
    "parallel": (["--config.parallel=pmapp"], ["'pmapp'", "'pmap'"]),
    "dtype": (["--config.dtype=float31"], ["'float31'", "'float32'"]),
    "on_nonfinite": (["--config.on_nonfinite=ignore"], ["'ignore'", "skip", "stop"]),
    "best_mode": (["--config.eval.best_mode=mim"], ["'mim'", "'min'"]),
    "image size": (["--config.image_size=24"], ["24", "16, 32, 64, 128 or 256"]),
    "devices": (["--config.batch_size=12"], ["12", "8 devices", "multiple of 8"]),
    "no steps": (["--config.num_train_steps=0"], ["num_train_steps", "at least 1"]),
    "cadence": (
        ["--config.steps_per_dispatch=3", "--config.log_every=4"],
        ["log_every", "multiple", "3"],
    ),
    "eval cadence": (["--config.steps_per_dispatch=4", "--config.eval.every=6"], ["eval.every"]),
    "num_classes": (["--config.num_classes=5"], ["num_classes is 5", "10"]),
    "no such folder": (["--config.data.source=folder:nowhere"], ["nowhere"]),
    "folder with no images": (["--config.data.source=folder:{empty}"], ["{empty}"]),
    "another method": (["--config.method=classifier"], ["'classifier'", "model"]),
    "not an npz": (["--config.data.source=npz:{file}"], ["{file}"]),
}


@pytest.fixture
def places(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a workdir")
    return {name: str(tmp_path / name) for name in ("empty", "file")}


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_train_mistakes(mistake, places, tmp_path, capsys):
    flags, words = TRAIN_MISTAKES[mistake]
    flags, words = ([text.format(**places) for text in texts] for texts in (flags, words))
    argv = ["train", "--config=digits_dcgan:smoke", *TINY, f"--workdir={tmp_path / 'run'}", *flags]
    code, stderr = in_process(argv, capsys)
    assert_one_line(code, stderr, *words)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file(places, capsys):
    argv = ["train", "--config=digits_dcgan:smoke", *TINY, f"--workdir={places['file']}"]
    assert_one_line(*in_process(argv, capsys), places["file"], "is a file")


def test_a_workdir_of_another_config(gan_run, capsys):
    before = files(gan_run)
    changes = ["--config.optimizer.lr=1e-3", "--config.loss=hinge", "--config.log_every=2"]
    argv = ["train", "--config=digits_dcgan:smoke", *TINY, f"--workdir={gan_run}", *changes]
    code, stderr = in_process(argv, capsys)
    assert_one_line(code, stderr, str(gan_run), "-> 0.001", "--workdir")
    assert "loss: 'non_saturating' -> 'hinge'; optimizer.lr: " in stderr
    assert "log_every" not in stderr
    assert files(gan_run) == before


@pytest.fixture
def broken_runs(gan_run, judge_run, tmp_path):
    """Folders that are no run, or a run without a checkpoint, by name."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(gan_run, tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh" / "checkpoints")
    shutil.copytree(gan_run, tmp_path / "hollow")
    for path in (tmp_path / "hollow" / "checkpoints").iterdir():
        shutil.rmtree(path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    names = ("empty", "fresh", "hollow", "full", "nowhere", "new", "x.png", "x.gif")
    places = {name: str(tmp_path / name) for name in names}
    return places | {"gan": str(gan_run), "judge": str(judge_run)}


MISTAKES = {
    "no such run": ("sample --workdir={nowhere} --out={x.png}", ["{nowhere}", "config.json"]),
    "not a run": ("sample --workdir={empty} --out={x.png}", ["{empty}", "config.json"]),
    "no checkpoint": ("sample --workdir={fresh} --out={x.png}", ["{fresh}", "no checkpoint"]),
    "no checkpoint in it": ("sample --workdir={hollow} --out={x.png}", ["no checkpoint"]),
    "no such step": ("sample --workdir={gan} --out={x.png} --step=5", ["step 5"]),
    "label": ("sample --workdir={gan} --out={x.png} --label=10", ["--label 10", "0 to 9"]),
    "label below": ("sample --workdir={gan} --out={x.png} --label=-1", ["--label -1", "0 to 9"]),
    "label no number": ("sample --workdir={gan} --out={x.png} --label=three", ["three"]),
    "none": ("sample --workdir={gan} --out={x.png} --n=0", ["--n 0", "at least 1"]),
    "ending": ("sample --workdir={gan} --out={x.gif}", ["x.gif", ".png", ".npz"]),
    "full folder": ("sample --workdir={gan} --out={full}", ["{full}", "new folder"]),
    "a classifier": ("sample --workdir={judge} --out={x.png}", ["'classifier'", "no images"]),
    "flag of sample": ("sample --workdir={gan} --lable=3", ["--lable"]),
    "no workdir": ("sample --out={x.png}", ["--workdir"]),
    "command": ("trian", ["trian", "train"]),
    "evaluate nothing": ("evaluate --fake={gan}", ["--extractor"]),
    "evaluate no images": ("evaluate --fake={empty}", ["{empty}", "image"]),
    "no classifier": ("evaluate --fake={gan} --extractor={gan}", ["'gan'", "classifier"]),
    "real": ("evaluate --fake={gan} --extractor={judge} --real=nowhere", ["'nowhere'"]),
    "too few": ("evaluate --fake={gan} --extractor={judge} --num=1", ["--num 1", "at least 2"]),
    "truncation": ("sample --workdir={gan} --out={x.png} --truncation=0", ["above 0"]),
    "temperature": ("sample --workdir={gan} --out={x.png} --temperature=-1", ["-1.0", "above 0"]),
    "no number": ("sample --workdir={gan} --out={x.png} --guidance=nan", ["nan", "at least -1"]),
    "top_k": ("sample --workdir={gan} --out={x.png} --top_k=-1", ["--top_k -1", "at least 0"]),
    "a knob of others": (
        "sample --workdir={hollow} --out={x.png} --top_k=3",  # told before a checkpoint is read
        ["--top_k", "'gan'", "it has --truncation"],
    ),
    "below a file": ("sample --workdir={gan} --out={full}/mine.txt/x.png", ["{full}/mine.txt"]),
    "reconstruct a gan": (
        "reconstruct --workdir={hollow} --input={full} --out={new}",
        ["'gan' can't encode", "vae"],
    ),
    "reconstruct no run": ("reconstruct --workdir={full} --input={full} --out={new}", ["{full}"]),
    "walk by a classifier": ("interpolate --workdir={judge} --out={x.png}", ["'classifier'"]),
    "walk to a folder": ("interpolate --workdir={gan} --out={new}", ["{new}", ".png"]),
    "walk to a gif": ("interpolate --workdir={gan} --out={x.gif}", ["x.gif", ".png"]),
    "no rows": ("interpolate --workdir={gan} --out={x.png} --rows=0", ["--rows 0", "at least 1"]),
    "one column": ("interpolate --workdir={gan} --columns=1", ["--columns 1", "at least 2"]),
    "walk of a label": ("interpolate --workdir={gan} --out={x.png} --label=10", ["0 to 9"]),
    "walk between images": (
        "interpolate --workdir={hollow} --out={x.png} --input={full}",
        ["'gan' can't encode", "vae"],
    ),
    "k": ("evaluate --fake={gan} --k=0", ["--k 0", "at least 1"]),
    "k of a folder": ("evaluate --fake={full} --k=5", ["--k 5", "{full}", "run"]),
    "k of another metric": ("evaluate --fake={gan} --metrics=fid --k=5", ["--k 5", "nll"]),
    "a bucket": ("train --workdir=gs://bucket/run", ["gs://bucket/run", "mount"]),
    "half a cluster": ("train --num_processes=2 --process_id=0", ["--coordinator", "together"]),
    "a folder's config": ("train --config=mine/digits_dcgan.py", ["mine/digits_dcgan.py"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, broken_runs, tmp_path, capsys):
    command, words = MISTAKES[mistake]
    places = {name.replace(".", "_"): path for name, path in broken_runs.items()}

    def fill(text):
        return text.replace("{x.", "{x_").format(**places)

    before = files(tmp_path)
    code, stderr = in_process(fill(command).split(), capsys)
    assert_one_line(code, stderr, *map(fill, words))
    assert files(tmp_path) == before


def test_another_size_for_the_judge(gan_run, tmp_path, capsys):
    config = ["--config=digits_classifier:smoke", "--config.image_size=8", "--config.model.width=4"]
    train(*config, f"--workdir={tmp_path / 'judge'}")
    argv = ["evaluate", f"--fake={gan_run}", f"--extractor={tmp_path / 'judge'}"]
    assert_one_line(*in_process(argv, capsys), "8x8", "16x16")


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--config.loss=hing", "--workdir={}/run"],
        ["sample", "--workdir={}/run"],
        ["evaluate", "--fake={}", "--exctractor=x"],
    ],
)
def test_mistakes_of_a_process(argv, tmp_path):
    """The same through the entry point: the exit code, and nothing else on stderr."""
    code, stdout, stderr = aigc(*[arg.format(tmp_path) for arg in argv])
    assert_one_line(code, stderr)
    assert stdout == "" and not any(tmp_path.iterdir())


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_full_disk(small_disk):
    flags = [
        "--config.checkpoint_every=1",
        "--config.keep_checkpoints=99",
        "--config.sample_every=0",
    ]
    flags += ["--config.num_train_steps=400", "--config.log_every=1"]
    argv = ["train", "--config=digits_classifier:smoke", *JUDGE, *flags]
    code, _, stderr = aigc(*argv, f"--workdir={small_disk / 'run'}")
    last = stderr.splitlines()[-1]
    assert code == 2, stderr
    assert last.startswith("aigc train: The disk is full") and "last good checkpoint" in last
    good = int(last.split("; step ")[1].split()[0])
    assert cli.main(["evaluate", f"--fake={small_disk / 'run'}"]) == 0  # restores it
    assert (small_disk / "run" / "checkpoints" / str(good)).is_dir()
