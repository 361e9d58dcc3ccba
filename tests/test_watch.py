"""Runs that go wrong: warned of, stopped, or taken back with smaller learning rates."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from aigc_jax import config as configs
from aigc_jax import parallel, train
from aigc_jax.checkpoint import Checkpoints
from aigc_jax.errors import UserError
from aigc_jax.history import NonFiniteError
from aigc_jax.methods import gan, vae
from aigc_jax.metrics import collapse
from aigc_jax.watch import TroubleError, Watch
from aigc_jax.writers import read_metrics

HEALTHY = {"diversity": 0.9, "d_accuracy": 0.8, "g_grad_norm": 1.0, "d_grad_norm": 1.0}


def make(policy, method=gan, **rollback):
    config = configs.load("digits_dcgan")
    config.on_collapse = policy
    config.rollback.update(rollback)
    return Watch(config, method)


# ---- what it sees


def test_healthy_metrics_say_nothing():
    watch = make("warn")
    assert watch.look(1000, HEALTHY, {}) is None
    assert watch.look(1000, {}, {"eval_fid": 3.0}) is None
    assert make("warn", types.SimpleNamespace()).look(1000, {"loss": 1.0}, {}) is None


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"diversity": 0.02}, "2% as varied as real ones: mode collapse"),
        ({"g_grad_norm": 1e5}, r"g_grad_norm is 1e\+05: gradients explode"),
        ({"d_grad_norm": 1e5}, "d_grad_norm is"),
    ],
)
def test_collapse_is_told_and_acted_on(metrics, line):
    bad = HEALTHY | metrics
    assert re.search(line, make("warn").look(1000, bad, {}))
    for policy in ("stop", "rollback"):
        with pytest.raises(TroubleError, match=f"Step 1000: .*{line}"):
            make(policy).look(1000, bad, {})
        assert make(policy).look(100, bad, {}) is None  # it has hardly begun


def test_a_sure_discriminator_is_told_and_not_acted_on():
    assert "learning rate" in make("stop").look(1000, HEALTHY | {"d_accuracy": 1.0}, {})


def test_the_distance_against_its_best():
    watch = make("stop")
    watch.remember([{"step": 1, "eval_fid": 4.0}, {"step": 2}, {"step": 3, "eval_fid": 9.0}])
    assert watch.beside_best({}) == {}
    assert watch.beside_best({"eval_fid": 6.0}) == {"eval_fid_over_best": 1.5}
    assert watch.look(1000, {}, {"eval_fid": 6.0}) is None
    assert watch.beside_best({"eval_fid": 2.0}) == {"eval_fid_over_best": 1.0}
    assert watch.look(1100, {}, {"eval_fid": 2.0}) is None
    with pytest.raises(TroubleError, match=r"is 4\.5, and was 2 at its best"):
        watch.look(1200, {}, {"eval_fid": 4.5})
    assert collapse.fallen_back(3.9, 2.0) is None


def test_a_method_without_signs():
    for policy in ("stop", "rollback"):
        with pytest.raises(UserError, match=f"on_collapse is '{policy}', which the method"):
            make(policy, vae)
    make("warn", vae)


# ---- back


class Small(struct.PyTreeNode):
    """A state with a learning rate."""

    step: jax.Array
    extras: dict


def small(step, scale=1.0):
    return Small(jnp.int32(step), {"lr_scale": jnp.float32(scale)})


def checkpoints(folder, *steps):
    made = Checkpoints(folder, parallel.layout("jit", jax.devices()[:1]))
    for step in steps:
        made.save(step, small(step))
    made.wait()
    return made


def test_back_is_the_last_checkpoint_then_the_one_before(tmp_path):
    watch, trouble = make("rollback", factor=0.5, times=3), TroubleError("Step 25: bad.", 25)
    shapes = jax.eval_shape(lambda: small(0))
    with checkpoints(tmp_path, 10, 20) as kept:
        for expected, place in ((20, "step 20"), (10, "step 10"), (None, "the beginning")):
            restored, line = watch.back(trouble, shapes, kept)
            assert (restored and restored[1]) == expected
            assert f"Step 25: bad. Back to {place}, with learning rates 0.5 times" in line
            if expected == 20:  # on the way to the same trouble it is saved anew
                kept.save(22, small(22))
        with pytest.raises(UserError, match=r"Step 25: bad\. It was taken back as often as"):
            watch.back(trouble, shapes, kept)
        assert kept.latest_step is None


def test_a_later_trouble_is_a_new_one(tmp_path):
    watch, shapes = make("rollback"), jax.eval_shape(lambda: small(0))
    with checkpoints(tmp_path, 10) as kept:
        assert watch.back(TroubleError("x", 15), shapes, kept)[0][1] == 10
        kept.save(20, small(20))
        assert watch.back(TroubleError("x", 25), shapes, kept)[0][1] == 20


def test_what_an_evaluation_sees_began_after_the_last_fine_one(tmp_path):
    """Though checkpoints were saved in between; those are discarded."""
    watch, shapes = make("rollback"), jax.eval_shape(lambda: small(0))
    assert watch.look(20, {}, {"eval_fid": 3.0}) is None
    with pytest.raises(TroubleError) as error, checkpoints(tmp_path, 10, 20, 30) as kept:
        watch.look(40, {}, {"eval_fid": 7.0})
    assert (error.value.step, error.value.before) == (40, 20)
    with Checkpoints(tmp_path, kept.layout) as kept:
        assert watch.back(error.value, shapes, kept)[0][1] == 20
        assert kept.steps == [10, 20]


def test_only_what_is_left_is_remembered():
    watch = make("stop")
    watch.remember([{"step": 10, "eval_fid": 40.0}, {"step": 20, "eval_fid": 10.0}])
    with pytest.raises(TroubleError):
        watch.look(30, {}, {"eval_fid": 40.0})
    watch.remember([])  # taken back to the beginning
    assert watch.look(10, {}, {"eval_fid": 40.0}) is None


def test_rates_go_on_from_the_one_in_trouble():
    assert make("rollback", factor=0.5).calmer(small(25, scale=0.5)) == 0.25
    calm = gan.calmed(small(10), 0.25)
    assert int(calm.step) == 10 and float(calm.extras["lr_scale"]) == 0.25


# ---- whole runs


def wild(policy, **rollback):
    """A DCGAN whose first update leaves the finite numbers."""
    config = configs.load("digits_dcgan:smoke")
    config.generator.width = config.discriminator.width = 4
    config.image_size, config.eval.extractor = 16, ""
    config.log_every = config.checkpoint_every = 2
    config.num_train_steps, config.optimizer.lr = 6, 1e30
    config.on_collapse = policy
    config.rollback.update(rollback)
    return config


@pytest.mark.usefixtures("compiled_once")
def test_a_wild_run_is_taken_back_and_ends_well(tmp_path, capsys):
    state = train.run(wild("rollback", factor=1e-33, times=2), tmp_path)
    assert int(state.step) == 6
    np.testing.assert_allclose(state.extras["lr_scale"], 1e-33, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.g))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["lr_scale"] == pytest.approx(1e-33)
    assert (
        "Back to the beginning, with learning rates 1e-33 times as large" in capsys.readouterr().out
    )


@pytest.mark.usefixtures("compiled_once")
def test_the_same_batches_come_again(tmp_path):
    """After a resumed run is taken back to the beginning, too."""
    config, begun = wild("rollback", factor=1e-33), []
    config.channels, config.num_classes, config.optimizer.lr = 1, 10, 1e-3

    def batches(step):
        begun.append(step)
        while True:
            rng = np.random.default_rng(step)
            image = rng.uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32)
            image[:] = np.nan if step == 4 and begun.count(0) < 3 else image
            label = rng.integers(0, 10, 8).astype(np.int32)
            yield {"image": image, "label": label, "index": np.arange(8, dtype=np.int32)}
            step += 1

    config.num_train_steps = 3
    config.checkpoint_every = 0
    train.run(config, tmp_path, batches)  # saved at its end, step 3
    config.num_train_steps = 6
    state = train.run(config, tmp_path, batches)
    assert begun[-2:] == [3, 0] or begun[-1] == 0
    assert int(state.step) == 6
    with pytest.raises(UserError, match="pass a function from a step"):
        train.run(config, tmp_path / "other", iter(batches(0)))


@pytest.mark.usefixtures("compiled_once")
def test_it_is_taken_back_so_often_and_no_more(tmp_path):
    with pytest.raises(UserError, match=r"taken back as often as config\.rollback\.times allows"):
        train.run(wild("rollback", factor=0.5, times=2), tmp_path)


@pytest.mark.usefixtures("compiled_once")
def test_stopped_at_once(tmp_path):
    with pytest.raises(NonFiniteError, match="there is no checkpoint yet"):
        train.run(wild("stop"), tmp_path)


def test_learning_rates_are_in_the_step():
    """And only of a run that may be taken back."""
    config = wild("rollback")
    config.channels, config.num_classes = 1, 10
    spec = gan.from_config(config)
    batch = {
        "image": np.zeros((8, 16, 16, 1), np.float32),
        "label": np.arange(8, dtype=np.int32),
        "index": np.arange(8, dtype=np.int32),
    }
    init = jax.eval_shape(functools.partial(gan.init_state, spec), jax.random.key(0), batch)
    assert "lr_scale" in init.extras
    config.on_collapse = "warn"
    plain = gan.from_config(config)
    init = jax.eval_shape(functools.partial(gan.init_state, plain), jax.random.key(0), batch)
    assert "lr_scale" not in init.extras
