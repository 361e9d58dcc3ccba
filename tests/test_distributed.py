"""Two real processes of two devices each end where one process ends: SGD, the same global batch."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from aigc_jax import config as configs
from aigc_jax import runs, scores, train
from aigc_jax.writers import read_metrics

COMMON = [
    "batch_size=16",
    "optimizer.name=sgd",
    "optimizer.lr=0.05",
    "optimizer.schedule=constant",
    "eval.batch_size=100",
    "sample_every=0",
    "checkpoint_every=2",
    "log_every=2",
]
SLOW = pytest.mark.slow
CLASSIFIER = ("digits_classifier", ["image_size=8", "model.width=4", *COMMON])
GAN = (
    "digits_dcgan",
    ["image_size=16", "generator.width=4", "discriminator.width=4", "eval.extractor=", *COMMON],
)


def flags(fields, **more):
    fields = [*fields, *(f"{name}={value}" for name, value in more.items())]
    return [f"--config.{field}" for field in fields]


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.fixture
def launch(compiled_once):
    """Starts the two processes of one job: launch(workdir, run, **fields) -> [process, process]."""
    started = []
    env = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
    }

    def start(workdir, run, **fields):
        name, changed = run
        command = [sys.executable, "-m", "aigc_jax", "train", f"--config={name}"]
        command += [f"--workdir={workdir}", *flags(changed, **fields)]
        command += [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        pair = [subprocess.Popen([*command, f"--process_id={i}"], **pipes) for i in range(2)]
        started.extend(pair)
        return pair

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(pair):
    """The stdout of both, which must end well."""
    told = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], told
    return [stdout for stdout, _ in told]


def one_process(workdir, run, **fields):
    name, changed = run
    return train.run(configs.override(configs.load(name), flags(changed, **fields)), workdir)


def assert_near(state, other, tolerance):
    leaves = [jax.tree.leaves(jax.device_get(tree)) for tree in (state, other)]
    for x, y in zip(*leaves, strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance)


def steps_on_disk(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_gan_stopped_and_continued(tmp_path, launch):
    together, alone = tmp_path / "together", tmp_path / "alone"
    finish(launch(together, GAN, num_train_steps=3))
    assert steps_on_disk(together) == [2, 3]
    first, second = finish(launch(together, GAN, num_train_steps=5))
    assert f"Continuing {together} from step 3 of" in first and "Look at" in first
    assert "Continuing" not in second and "Look at" not in second
    state = one_process(alone, GAN, num_train_steps=5)
    assert_near(runs.load(together).state, state, 1e-6)
    # The logs are of one process: each step once, a file of events a launch, the same pictures.
    logged = [row["step"] for row in read_metrics(together)]
    assert logged == [2, 3, 5]  # at step 4 the first metrics of the second launch still wait
    assert len(list((together / "tensorboard").iterdir())) == 2
    for row, other in zip(read_metrics(together)[-1:], read_metrics(alone)[-1:], strict=True):
        assert row.keys() == other.keys()
        np.testing.assert_allclose(row["g_loss"], other["g_loss"], rtol=1e-5)
    pictures = {path.name for path in (together / "samples").iterdir()}
    assert pictures == {"samples_0000003.png", "samples_0000005.png"}


@pytest.mark.parametrize(
    "mode, signalled, steps_per_dispatch",
    [
        ("jit", [1], 2),
        pytest.param("pmap", [0, 1], 1, marks=pytest.mark.slow),
        pytest.param("fsdp", [0], 1, marks=pytest.mark.slow),
    ],
)
def test_preempted_and_continued(tmp_path, launch, mode, signalled, steps_per_dispatch):
    """SIGTERM to one or to both: both stop at one step, save it together, and exit with 0."""
    fields = dict(parallel=mode, steps_per_dispatch=steps_per_dispatch)
    workdir = tmp_path / "together"
    many = dict(num_train_steps=20_000, log_every=10, checkpoint_every=1000)
    pair = launch(workdir, CLASSIFIER, **many, **fields)
    while not read_metrics(workdir) and all(process.poll() is None for process in pair):
        time.sleep(0.02)
    for i in signalled:
        pair[i].send_signal(signal.SIGTERM)
    first, second = finish(pair)
    (step,) = steps_on_disk(workdir)
    assert f"Stopped at step {step}, saved" in first
    assert "Stopped" not in second
    assert 10 <= step < 20_000

    total = (step // 2 + 2) * 2
    finish(launch(workdir, CLASSIFIER, num_train_steps=total, **fields))
    state = one_process(tmp_path / "alone", CLASSIFIER, num_train_steps=total, **fields)
    assert_near(runs.load(workdir).state, state, 1e-5)


@pytest.mark.parametrize("mode", ["jit", *(pytest.param(m, marks=SLOW) for m in ("pmap", "fsdp"))])
def test_judged_together(tmp_path, launch, mode):
    """Samples are drawn and read by all processes: one record an evaluation, one number."""
    one_process(tmp_path / "judge", CLASSIFIER, num_train_steps=2, image_size=16)
    fields = {"eval.extractor": tmp_path / "judge", "eval.every": 2, "parallel": mode}
    fields |= {"eval.metrics": "fid,kid,label_accuracy", "num_train_steps": 4}
    finish(launch(tmp_path / "together", GAN, **fields))
    one_process(tmp_path / "alone", GAN, **fields)
    together, alone = (scores.read(tmp_path / name) for name in ("together", "alone"))
    assert [r["step"] for r in together] == [r["step"] for r in alone] == [2, 4]
    for record, other in zip(together, alone, strict=True):
        for name in ("fid", "kid"):
            value, expected = (r["scores"][name]["value"] for r in (record, other))
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)
        accuracy, expected = (r["scores"]["label_accuracy"]["value"] for r in (record, other))
        assert accuracy == pytest.approx(expected, abs=0.01)
