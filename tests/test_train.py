"""The loop as a user meets it: continued to the bit, killed, fed NaN, without TensorFlow."""

import functools
import json
import logging
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from aigc_jax import config as configs
from aigc_jax import parallel, runs, scores, train
from aigc_jax.errors import UserError
from aigc_jax.methods import classifier
from aigc_jax.types import to_uint8
from aigc_jax.writers import read_metrics

pytestmark = pytest.mark.usefixtures("compiled_once")

# A method of the user's own, as small as a method can be: it learns the mean of the images.
METHOD = """
import jax, jax.numpy as jnp
from flax import struct
from aigc_jax.parallel import pmean

class State(struct.PyTreeNode):
    step: jax.Array
    mean: jax.Array

def from_config(config, axis_name=None):
    return config.optimizer.lr, axis_name

def init_state(spec, rng, batch, frozen=None):
    return State(jnp.int32(0), jnp.zeros(batch["image"].shape[1:]))

def a_step_to_count(spec, state, batch, rng):
    lr, axis_name = spec
    loss, grad = jax.value_and_grad(lambda m: jnp.mean((batch["image"] - m[None]) ** 2))(state.mean)
    loss, grad = pmean((loss, grad), axis_name)
    return State(state.step + 1, state.mean - lr * grad), {"loss": loss}

train_step = a_step_to_count

def sample(spec, state, rng, batch):
    return jnp.broadcast_to(state.mean, (len(batch["index"]), *state.mean.shape))
"""


@pytest.fixture(scope="module")
def my_method(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "a_users").mkdir()
    (folder / "a_users" / "__init__.py").touch()
    (folder / "a_users" / "mean.py").write_text(METHOD)
    sys.path.insert(0, str(folder))
    yield "a_users.mean"
    sys.path.remove(str(folder))


def set_all(config, **fields):
    with config.unlocked():
        for name, value in fields.items():
            *sections, last = name.split("__")
            functools.reduce(lambda c, s: c[s], sections, config)[last] = value
    return config


def digits(total=24, **fields):
    """The classifier on 8x8 digits, through tf.data: the smallest real run."""
    defaults = dict(
        image_size=8,
        batch_size=16,
        num_train_steps=total,
        log_every=4,
        sample_every=0,
        checkpoint_every=4,
        model__width=4,
        optimizer__schedule="constant",
        eval__batch_size=100,
    )
    return set_all(configs.load("digits_classifier"), **defaults | fields)


def tiny_gan(**fields):
    widths = dict(generator__width=4, discriminator__width=4, generator__latent_dim=8)
    alone = dict(image_size=16, eval__extractor="")
    return set_all(configs.load("digits_dcgan:smoke"), **alone | widths | fields)


def mine(my_method, **fields):
    defaults = dict(
        method=my_method, image_size=4, batch_size=8, num_classes=0, num_train_steps=8,
        log_every=2, sample_every=0, checkpoint_every=2, optimizer__lr=0.5,
    )  # fmt: skip
    return set_all(configs.default(), **defaults | fields)


def noise(n=8, count=8, size=4, channels=1, num_classes=0, bad=()):
    rng = np.random.default_rng(0)
    for i in range(count):
        batch = {
            "image": rng.uniform(-1, 1, (n, size, size, channels)).astype(np.float32),
            "index": np.arange(i * n, (i + 1) * n, dtype=np.int32),
        }
        if num_classes:
            batch["label"] = rng.integers(0, num_classes, n).astype(np.int32)
        if i in bad:
            batch["image"][3, 0, 0, 0] = np.nan
        yield batch


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def steps_on_disk(workdir):
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return {int(name) for name in names if name.isdigit()}


def logged_steps(workdir):
    return [row["step"] for row in read_metrics(workdir)]


# ---- exact resume ----


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, compiled_once):
    """24 steps at once: the truth for those that are stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    return train.run(digits(24), workdir), workdir


def test_stopped_and_continued_is_the_same(tmp_path, whole_run):
    train.run(digits(12), tmp_path)
    assert int(runs.load(tmp_path).state.step) == 12
    state = train.run(digits(24), tmp_path)
    assert bits(state) == bits(whole_run[0])
    assert logged_steps(tmp_path) == logged_steps(whole_run[1]) == [4, 8, 12, 16, 20, 24]


def test_the_gan_too(tmp_path):
    """Latents, two optimizers, moving averages."""
    fields = dict(checkpoint_every=2, log_every=2, sample_every=0)
    whole = train.run(tiny_gan(num_train_steps=6, **fields), tmp_path / "whole")
    train.run(tiny_gan(num_train_steps=3, **fields), tmp_path / "parts")
    assert steps_on_disk(tmp_path / "parts") == {2, 3}
    parts = train.run(tiny_gan(num_train_steps=6, **fields), tmp_path / "parts")
    assert bits(parts) == bits(whole)


def test_steps_per_dispatch(tmp_path, whole_run):
    """Four steps a call, and three left over at the end; resumed from a step between calls."""
    config = digits(24, steps_per_dispatch=4)
    train.run(digits(6, steps_per_dispatch=4), tmp_path)
    assert steps_on_disk(tmp_path) == {4, 6}
    state = train.run(config, tmp_path)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole_run[0]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)
    assert logged_steps(tmp_path) == [6, 8, 12, 16, 20, 24]  # the newest call waits for the next


def test_a_finished_run_is_left_as_it_is(whole_run):
    state, workdir = whole_run
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and "tens" not in str(p)}
    assert bits(train.run(digits(24), workdir)) == bits(state)
    after = {p: p.read_bytes() for p in before}
    del before[workdir / "run.json"], after[workdir / "run.json"]
    assert before == after


# ---- killed ----

LONG = 3000  # steps: some seconds, in which a signal can come


def start(workdir, *flags):
    fields = dict(checkpoint_every=50, log_every=10, num_train_steps=LONG)
    argv = [f"--config.{k}={v}" for k, v in fields.items()] + list(flags)
    changed = ["image_size=8", "batch_size=16", "sample_every=0", "model.width=4",
               "optimizer.schedule=constant", "eval.batch_size=100"]  # fmt: skip
    command = [sys.executable, "-m", "aigc_jax", "train", "--config=digits_classifier"]
    command += [f"--config.{field}" for field in changed] + argv + [f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process, workdir):
    deadline = time.time() + 120
    while not steps_on_disk(workdir) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))


def end(step):
    return digits(step, checkpoint_every=50, log_every=10)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_killed_and_started_again_is_the_same(tmp_path, stop):
    """SIGKILL at a random moment between saves, then a polite stop, in other processes."""
    process = start(tmp_path / "killed")
    wait_for_checkpoint(process, tmp_path / "killed")
    process.kill()
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    killed_at = max(steps_on_disk(tmp_path / "killed"))
    assert 50 <= killed_at < LONG

    process = start(tmp_path / "killed")
    while f"Continuing {tmp_path / 'killed'} from step" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
    began = int(line.split()[-3])
    assert began >= killed_at and began % 50 == 0
    while max(logged_steps(tmp_path / "killed")) < began + 20 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(stop)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Stopped at step" in stdout and "Look at" not in stdout
    stopped = max(steps_on_disk(tmp_path / "killed"))
    assert began < stopped < LONG and f"at step {stopped}, saved" in stdout

    total = stopped // 50 * 50 + 100
    resumed = train.run(end(total), tmp_path / "killed")
    assert bits(resumed) == bits(train.run(end(total), tmp_path / "whole"))
    steps = logged_steps(tmp_path / "killed")
    assert steps == sorted(set(steps)) and set(steps) >= set(range(10, total + 1, 10))


# ---- not finite ----


def test_stops_at_a_nonfinite_loss(tmp_path, my_method):
    with pytest.raises(UserError) as error:
        train.run(mine(my_method, log_every=1), tmp_path, noise(bad=[5]))
    assert str(error.value).startswith("Step 6: loss is nan; step 4 is the last good checkpoint.")
    assert "\n" not in str(error.value)
    run = runs.load(tmp_path)
    assert run.step == 4 and np.isfinite(run.state.mean).all()
    assert all(math.isfinite(row["loss"]) for row in read_metrics(tmp_path))


@pytest.mark.parametrize("log_every", [1, 4, 0])
def test_saves_nothing_nonfinite(tmp_path, my_method, log_every):
    """A save comes right after the step that went wrong, whatever the logs have seen."""
    config = mine(my_method, log_every=log_every, checkpoint_every=1)
    with pytest.raises(UserError, match=r"Step 6: loss is nan; step 5 is the last good"):
        train.run(config, tmp_path, noise(bad=[5]))
    assert max(steps_on_disk(tmp_path)) == 5


def test_stops_before_the_first_checkpoint(tmp_path, my_method):
    with pytest.raises(UserError, match=r"Step 1: loss is nan; there is no checkpoint yet"):
        train.run(mine(my_method), tmp_path, noise(bad=[0]))
    assert not steps_on_disk(tmp_path)


def test_names_the_step_inside_a_dispatch(tmp_path, my_method):
    config = mine(my_method, steps_per_dispatch=2)
    with pytest.raises(UserError, match=r"Step 6: loss is nan; step 4 is the last good"):
        train.run(config, tmp_path, noise(bad=[5]))


@pytest.mark.parametrize("steps_per_dispatch", [1, 2])
def test_skip_is_as_if_the_batch_had_not_been(tmp_path, my_method, steps_per_dispatch):
    config = mine(my_method, on_nonfinite="skip", steps_per_dispatch=steps_per_dispatch)
    skipped = train.run(config, tmp_path / "a", noise(bad=[3, 5]))
    good = [batch for i, batch in enumerate(noise()) if i not in (3, 5)]
    without = train.run(mine(my_method, num_train_steps=6), tmp_path / "b", good)
    assert int(skipped.step) == 8
    assert np.isfinite(skipped.mean).all()
    np.testing.assert_array_equal(skipped.mean, without.mean)
    rows = read_metrics(tmp_path / "a")
    assert sum(row["skipped"] for row in rows) == 2
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_skip_keeps_optimizer_statistics_and_average(tmp_path):
    """With a real method: Adam's moments, batch norm's statistics, the moving average."""
    fields = dict(
        image_size=8, batch_size=8, num_train_steps=4, num_classes=4, model__width=4,
        sample_every=0, on_nonfinite="skip", optimizer__schedule="constant",
    )  # fmt: skip
    config = set_all(configs.load("digits_classifier"), **fields)
    state = train.run(config, tmp_path, noise(8, 4, 8, num_classes=4, bad=[2]))

    config = configs.resolve(config, next(noise(8, 1, 8, num_classes=4)) | {})
    spec = classifier.from_config(config)
    layout = parallel.layout("jit", jax.devices()[:1])
    init_rng = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)
    expected = classifier.init_state(spec, init_rng, next(noise(1, 1, 8, num_classes=4)))
    step = layout.compile(functools.partial(classifier.train_step, spec))
    for i, batch in enumerate(noise(8, 4, 8, num_classes=4)):
        if i == 2:
            expected = expected.replace(step=expected.step + 1)
        else:
            expected, _ = step(expected, layout.place_batch(batch), jax.random.key(config.seed))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4)


# ---- any batches, nothing but the core installed ----


def test_without_tensorflow(tmp_path, my_method):
    """Where TensorFlow, TFDS, clu and TensorBoard aren't found; an iterable, and a callable."""
    code = f"""
    import sys
    sys.path[:0] = {sys.path!r}
    class Finder(sys.meta_path.pop()):
        @classmethod
        def find_spec(cls, name, *args):
            hidden = {{"tensorflow", "tensorflow_datasets", "clu", "tensorboard"}}
            return None if name in hidden else super().find_spec(name, *args)
    sys.meta_path.append(Finder)
    import numpy as np
    from aigc_jax import config as configs, runs, sampling, train
    config = configs.default()
    config.update(dict(method="a_users.mean", image_size=4, batch_size=8, num_classes=0,
                       num_train_steps=4, log_every=2, checkpoint_every=2))
    def batches(step):
        while True:
            rng = np.random.default_rng(step)
            image = rng.uniform(-1, 1, (8, 4, 4, 3)).astype(np.float32)
            yield {{"image": image, "index": np.arange(8, dtype=np.int32) + 8 * step}}
            step += 1
    train.run(config, "a", batches(0))
    config.num_train_steps = 2
    train.run(config, "b", batches)
    config.num_train_steps = 4
    state = train.run(config, "b", batches)
    images, _ = sampling.generate(runs.load("a"), 3)
    np.savez("out", a=runs.load("a").state.mean, b=state.mean, images=images)
    assert not any(name.split(".")[0] in ("tensorflow", "clu") for name in sys.modules)
    """
    env = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(out["a"], out["b"])
    assert out["images"].shape == (3, 4, 4, 3) and out["images"].dtype == np.uint8
    assert logged_steps(tmp_path / "b") == [2, 4]
    assert "clu" in result.stderr or "tensorflow" in result.stderr  # it says what it leaves out


def test_an_iterable_that_ends(tmp_path, my_method):
    with pytest.raises(UserError, match="The batches ended at step 3 of 8"):
        train.run(mine(my_method), tmp_path, list(noise(count=3)))
    with pytest.raises(UserError, match="not one batch"):
        train.run(mine(my_method), tmp_path / "none", [])
    assert not (tmp_path / "none").exists()


def test_batches_by_list_from_a_callable(tmp_path, my_method):
    everything = list(noise())
    a = train.run(mine(my_method), tmp_path / "a", lambda step: everything[step:])
    b = train.run(mine(my_method), tmp_path / "b", everything)
    assert bits(a) == bits(b)


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(image_size=8), r"batches hold 4x4x1 images, the config says 8x8x1"),
        (dict(channels=3), r"batches hold 4x4x1 images, the config says 4x4x3"),
        (dict(num_classes=-1), r"Set config.num_classes"),
    ],
)
def test_batches_that_do_not_fit_the_config(tmp_path, my_method, fields, says):
    with pytest.raises(UserError, match=says):
        train.run(mine(my_method, **fields), tmp_path / "run", noise(num_classes=3))
    assert not (tmp_path / "run").exists()


# ---- what a run leaves ----


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory, compiled_once):
    workdir = tmp_path_factory.mktemp("gan")
    train.run(tiny_gan(), workdir)
    return workdir


def test_pictures(gan_run):
    names = {path.name for path in (gan_run / "samples").iterdir()}
    assert names == {"samples_0000004.png", "samples_0000008.png"}
    with Image.open(gan_run / "samples" / "samples_0000008.png") as image:
        # 10 classes by 8, 16 pixels each, 2 between.
        assert image.size == (8 * 18 + 2, 10 * 18 + 2)
        grid = np.asarray(image, np.int32)
    # Row 3, column 5 is a 3, by the averaged weights, of the latent that stays there.
    run = runs.load(gan_run)
    batch = {"index": jnp.int32([3 * 8 + 5]), "label": jnp.int32([3])}
    rng = jax.random.fold_in(jax.random.key(run.config.seed), 2**31 - 2)
    (image,) = to_uint8(run.method.sample(run.spec, run.state, rng, batch))
    top, left = 3 * 18 + 2, 5 * 18 + 2
    assert abs(grid[top : top + 16, left : left + 16] - np.int32(image[..., 0])).max() <= 1
    assert (grid[top - 2 : top] == 255).all() and (grid[:, left - 2 : left] == 255).all()
    with Image.open(gan_run / "losses.png") as image:
        assert image.size[0] == 700 and len(np.unique(np.asarray(image))) > 20


def test_records(gan_run):
    config = json.loads((gan_run / "config.json").read_text())
    assert (config["num_classes"], config["channels"], config["generator"]["width"]) == (10, 1, 4)
    record = json.loads((gan_run / "run.json").read_text())
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["aigc_jax"] and record["versions"]["tensorflow"]
    assert len(record["devices"]) == jax.device_count()


def test_metrics_and_tensorboard_agree(gan_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    rows = read_metrics(gan_run)
    assert [row["step"] for row in rows] == [4, 8]
    assert {"d_loss", "g_loss", "d_accuracy", "diversity", "g_grad_norm", "d_grad_norm"} <= set(
        rows[0]
    )
    events = EventAccumulator(str(gan_run / "tensorboard"))
    events.Reload()
    for row in rows:
        (event,) = [e for e in events.Tensors("g_loss") if e.step == row["step"]]
        assert np.isclose(make_ndarray(event.tensor_proto), row["g_loss"], rtol=1e-6)
    tags = events.Tags()["tensors"]
    assert "samples" in tags and "parameters" in "".join(tags)


@pytest.mark.parametrize("mode", ["pmap", "jit", "fsdp"])
def test_the_step_compiles_once(tmp_path, my_method, caplog, mode):
    """Once a launch: neither the second step nor a restored state compiles another program."""

    def compilations(total):
        caplog.clear()
        config = mine(my_method, parallel=mode, num_train_steps=total)
        with caplog.at_level(logging.WARNING), jax.log_compiles():
            train.run(config, tmp_path, noise(count=total))
        # The step is what is compiled for the batch: whole, or a device's share of it.
        wanted = re.compile(r"Compiling.*float32\[(8|8,1|1),4,4,1\]")
        return [message for message in caplog.messages if wanted.match(message)]

    assert len(compilations(8)) == 1
    assert len(compilations(16)) == 1


def test_the_same_loop_trains_the_classifier(tmp_path):
    """The proof that the loop knows no method; and the best checkpoint by its accuracy is kept."""
    fields = dict(
        eval__every=100, eval__best="eval_accuracy", eval__best_mode="max", keep_checkpoints=1,
        optimizer__lr=5e-3, batch_size=64, model__width=8, log_every=100, checkpoint_every=100,
    )  # fmt: skip
    train.run(digits(300, **fields), tmp_path)
    scores = {row["step"]: row["eval_accuracy"] for row in read_metrics(tmp_path)}
    assert scores[300] > 0.9, scores
    best = max(scores, key=lambda step: (scores[step], step))
    assert steps_on_disk(tmp_path) == {best, 300}


def test_keeps_the_best_of_an_evaluation_between_saves(tmp_path):
    """lr = 0 after the start: every score is the same but where the parameters were better."""
    fields = dict(eval__every=2, eval__best="eval_loss", keep_checkpoints=1, checkpoint_every=8)
    train.run(digits(8, optimizer__lr=-0.02, **fields), tmp_path)  # it unlearns: the first is best
    scores = {row["step"]: row["eval_loss"] for row in read_metrics(tmp_path) if "eval_loss" in row}
    assert list(scores) == [2, 4, 6, 8]
    best = min(scores, key=scores.get)
    assert best < 8
    assert steps_on_disk(tmp_path) == {best, 8}


def test_warns_of_a_best_metric_that_is_none(tmp_path, capsys):
    train.run(digits(2, eval__best="accuracy"), tmp_path)
    assert (
        "config.eval.best is 'accuracy'. Did you mean 'eval_accuracy'?" in capsys.readouterr().out
    )


def test_bfloat16(tmp_path, whole_run):
    """The computation changes, the state's precision doesn't, and the losses are near."""
    state = train.run(digits(24, dtype="bfloat16"), tmp_path)
    assert {x.dtype for x in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
    losses = [np.mean([row["loss"] for row in read_metrics(w)]) for w in (tmp_path, whole_run[1])]
    assert bits(state) != bits(whole_run[0])
    assert abs(losses[0] - losses[1]) < 0.05


# ---- mistakes that write nothing ----


def test_another_config_changes_nothing(whole_run):
    workdir = whole_run[1]
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"another config \(model.width: 4 -> 8\)"):
        train.run(digits(24, model__width=8), workdir)
    assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_a_network_that_cannot_be_built_leaves_no_workdir(tmp_path):
    """Else the corrected launch would meet a run of another config."""
    with pytest.raises(UserError, match="size 48"):
        train.run(set_all(tiny_gan(), image_size=48), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- the judge ----


QUICK_JUDGE = """
from aigc_jax import config as configs

def get_config(arg=""):
    config = configs.load("digits_classifier:smoke")
    config.model.width, config.num_train_steps = 4, 2
    return config
"""


@pytest.fixture
def judge(tmp_path):
    """The config file of a judge that is trained in no time."""
    (tmp_path / "judge.py").write_text(QUICK_JUDGE)
    return str(tmp_path / "judge.py")


def test_an_unconditional_run_has_a_judge_where_there_are_labels(tmp_path, judge):
    """It reads the source's own classes, whatever the run knows of them."""
    metrics = "fid,label_accuracy"
    fields = dict(task="generate", num_train_steps=2, eval__metrics=metrics)
    config = tiny_gan(eval__extractor=judge, **fields)
    train.run(config, tmp_path / "run")
    assert configs.of_run(tmp_path / "run").num_classes == 0
    its = configs.of_run(tmp_path / "run" / "judge")
    assert (its.task, its.num_classes, its.method) == ("label", 10, "classifier")
    (record,) = scores.read(tmp_path / "run")
    assert list(record["scores"]) == ["fid"]  # no label is asked for: none can be right
    assert record["provenance"]["weights"] == str(tmp_path / "run" / "judge")


def test_no_judge_without_labels(tmp_path, judge):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (32, 16, 16, 1), dtype=np.uint8))
    source = dict(data__source=f"npz:{tmp_path / 'x.npz'}", eval__split="train", task="generate")
    train.run(tiny_gan(eval__extractor=judge, num_train_steps=2, **source), tmp_path / "run")
    assert not (tmp_path / "run" / "judge").exists()
    assert not (tmp_path / "run" / scores.SCORES).exists()


# ---- networks that are used and not trained ----

FROZEN = (
    METHOD.replace(
        "return State(jnp.int32(0), jnp.zeros(batch",
        "lent.append(frozen)\n    return State(jnp.int32(0), jnp.zeros(batch",
    )
    + "\nlent = []\n"
)


def test_frozen_runs_lend_their_weights(tmp_path, whole_run, my_method, monkeypatch):
    """What their method's `weights` gives of the state; all of it where it has none."""
    (tmp_path / "a_borrowers").mkdir()
    (tmp_path / "a_borrowers" / "__init__.py").touch()
    (tmp_path / "a_borrowers" / "mean.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    train.run(mine(my_method), tmp_path / "plain", noise())
    config = mine(my_method, method="a_borrowers.mean")
    with config.unlocked():
        config.frozen = {"judge": str(whole_run[1]), "plain": str(tmp_path / "plain")}
    lent = runs.frozen(config)
    assert bits(lent["judge"]) == bits(whole_run[0].ema)
    assert bits(lent["plain"]) == bits(runs.load(tmp_path / "plain").state)
    assert runs.frozen(mine(my_method)) is None
    train.run(config, tmp_path / "run", noise())
    given = sys.modules["a_borrowers.mean"].lent
    assert given and all(set(frozen) == {"judge", "plain"} for frozen in given)
    assert set(given[0]["judge"]) == {"params", "batch_stats"}
    config.frozen = {"judge": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match="nowhere is not a run"):
        train.run(config, tmp_path / "other", noise())


def test_where_to_look_next(tmp_path, gan_run, whole_run):
    assert f"Next: aigc sample --workdir {gan_run}" in train.farewell(gan_run)
    assert train.farewell(whole_run[1]) == f"Look at {whole_run[1] / 'losses.png'}."
