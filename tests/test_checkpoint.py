"""What is saved comes back to the bit; what can't be read is set aside; a full disk is named."""

import gc
import logging
import math
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from aigc_jax import parallel
from aigc_jax.checkpoint import Checkpoints
from aigc_jax.errors import UserError

# Reads that Orbax gives up when one of them fails end when they like, on a loop that is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def leave_nothing_to_collect():
    yield
    gc.collect()


class State(struct.PyTreeNode):
    step: jax.Array
    params: dict
    ema: dict | None
    frozen: dict
    opt: tuple


def make_state(seed=0, width=8):
    rng = np.random.default_rng(seed)
    return State(
        step=jnp.int32(seed),
        params={
            "kernel": jnp.asarray(rng.normal(size=(3, 3, 16, width)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=width), jnp.bfloat16),
            "subnormal": jnp.asarray([1e-40, -0.0, 3e38], jnp.float32),
        },
        ema=None,
        frozen={},
        opt=((), jnp.uint32([2**32 - 1]), {"mu": jnp.zeros(1)}, None),
    )


def layout(mode="jit", n=1):
    return parallel.layout(mode, jax.devices()[:n])


def save_all(workdir, steps, metrics=None, **fields):
    with Checkpoints(workdir, layout(), **fields) as checkpoints:
        for i, step in enumerate(steps):
            checkpoints.save(step, make_state(step), metrics[i] if metrics else None)


def steps_on_disk(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}


def restore(workdir, state=None, **fields):
    with Checkpoints(workdir, layout(), **fields) as checkpoints:
        return checkpoints.restore(make_state() if state is None else state)


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert bits(a) == bits(b)


def test_comes_back_to_the_bit(tmp_path):
    save_all(tmp_path, [7])
    # Given shapes alone, nothing of the values can come from the template.
    restored, step = restore(tmp_path, jax.eval_shape(make_state))
    assert step == 7
    assert_same(restored, make_state(7))


def test_nothing_there(tmp_path):
    assert restore(tmp_path) is None


def test_a_step_by_name(tmp_path):
    save_all(tmp_path, [1, 2])
    with Checkpoints(tmp_path, layout()) as checkpoints:
        assert_same(checkpoints.restore(make_state(), step=1)[0], make_state(1))
        with pytest.raises(UserError, match=r"No checkpoint of step 3 in "):
            checkpoints.restore(make_state(), step=3)


def test_keeps_the_newest(tmp_path):
    save_all(tmp_path, [1, 2, 3, 4], keep=2)
    assert steps_on_disk(tmp_path) == {3, 4}


@pytest.mark.parametrize("mode, best", [("min", 2), ("max", 1)])
def test_keeps_the_best_and_the_newest(tmp_path, mode, best):
    scores = [{"fd": 9.0, "loss": 0.0}, {"fd": 1.0}, {"fd": 5.0}, {"fd": math.nan}, {}]
    save_all(tmp_path, [1, 2, 3, 4, 5], scores, keep=1, best="fd", best_mode=mode)
    assert steps_on_disk(tmp_path) == {best, 5}
    # The best is known again after a restart.
    with Checkpoints(tmp_path, layout(), keep=1, best="fd", best_mode=mode) as checkpoints:
        checkpoints.save(6, make_state(6), {"fd": 5.0})
    assert steps_on_disk(tmp_path) == {best, 6}


def test_saves_behind_the_back_of_the_caller(tmp_path):
    """`save` returns before the write, and the caller may eat the state meanwhile."""
    state = make_state(1).replace(opt=jnp.zeros((4, 1024, 1024)))
    expected = bits(state)
    with Checkpoints(tmp_path, layout()) as checkpoints:
        checkpoints.save(1, state)
        assert any("save" in t.name or "orbax" in t.name.lower() for t in threading.enumerate())
        state = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
        checkpoints.wait()
        assert bits(checkpoints.restore(state)[0]) == expected


def test_a_saved_step_is_left_as_it_is(tmp_path):
    with Checkpoints(tmp_path, layout()) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.save(1, make_state(2))
        checkpoints.wait()
        assert_same(checkpoints.restore(make_state())[0], make_state(1))


def files(folder):
    return sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def truncate(checkpoint):
    path = files(checkpoint / "state")[-1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(checkpoint):
    path = files(checkpoint / "state")[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def no_manifest(checkpoint):
    (checkpoint / "state" / "manifest.ocdbt").unlink()


def torn_meta(checkpoint):
    path = files(checkpoint / "meta")[-1]
    path.write_bytes(path.read_bytes()[:20])


def empty_meta(checkpoint):
    files(checkpoint / "meta")[-1].write_bytes(b"")


def no_state(checkpoint):
    shutil.rmtree(checkpoint / "state")


HARMS = [truncate, flip_a_bit, no_manifest, torn_meta, empty_meta, no_state]


@pytest.mark.parametrize("harm", HARMS)
def test_a_corrupt_newest_is_set_aside(tmp_path, caplog, harm):
    save_all(tmp_path, [1, 2])
    harm(tmp_path / "checkpoints" / "2")
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path, layout()) as checkpoints:
        restored, step = checkpoints.restore(make_state())
        assert step == 1 == checkpoints.latest_step
        assert_same(restored, make_state(1))
        (warning,) = [r.getMessage() for r in caplog.records if "can't be read" in r.getMessage()]
        assert "\n" not in warning and str(tmp_path / "checkpoints" / "2") in warning
        assert (tmp_path / "checkpoints_corrupt" / "2").is_dir()
        checkpoints.save(2, make_state(22))  # the place is free again
    assert_same(restore(tmp_path)[0], make_state(22))


def test_a_reader_sets_nothing_aside(tmp_path):
    save_all(tmp_path, [1, 2])
    truncate(tmp_path / "checkpoints" / "2")
    assert restore(tmp_path, read_only=True)[1] == 1
    assert steps_on_disk(tmp_path) == {1, 2} and not (tmp_path / "checkpoints_corrupt").exists()


def test_all_corrupt(tmp_path):
    save_all(tmp_path, [1, 2])
    for step in "12":
        no_manifest(tmp_path / "checkpoints" / step)
    with pytest.raises(UserError, match=r"None of the checkpoints in .* can be read"):
        restore(tmp_path)
    assert steps_on_disk(tmp_path) == {1, 2}  # for whoever can mend them


def test_a_corrupt_one_by_name(tmp_path):
    save_all(tmp_path, [1, 2])
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with (
        Checkpoints(tmp_path, layout()) as checkpoints,
        pytest.raises(UserError, match=r"checkpoints/1"),
    ):
        checkpoints.restore(make_state(), step=1)
    assert steps_on_disk(tmp_path) == {1, 2}


@pytest.mark.parametrize(
    "other, says",
    [
        (
            make_state(width=4),
            r"bias.* is bfloat16\[8\] there and bfloat16\[4\] here",
        ),
        (make_state().replace(ema={"w": jnp.zeros(2)}), r"ema.* is nothing there"),
        (make_state().replace(step=jnp.float32(0)), r"step is int32\[\] there and float32\[\]"),
    ],
)
def test_another_network(tmp_path, other, says):
    save_all(tmp_path, [1, 2])
    with pytest.raises(UserError, match=says):
        restore(tmp_path, other)
    assert steps_on_disk(tmp_path) == {1, 2} and not (tmp_path / "checkpoints_corrupt").exists()


@pytest.mark.parametrize(
    "saved, used", [("pmap", "fsdp"), ("fsdp", "pmap"), ("jit", "fsdp"), ("fsdp", "jit")]
)
def test_from_one_layout_to_another(tmp_path, saved, used):
    there, here = layout(saved, 8), layout(used, 8)
    with Checkpoints(tmp_path, there) as checkpoints:
        checkpoints.save(1, there.place_state(make_state(1)))
    with Checkpoints(tmp_path, here) as checkpoints:
        restored, _ = checkpoints.restore(make_state())
    assert_same(restored, make_state(1))
    # As the compiled step of this layout wants it, or it would compile twice.
    wanted = here.place_state(make_state(1))
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
    assert restored.params["kernel"].is_fully_replicated == (used != "fsdp")


def test_what_a_killed_save_left_is_cleared(tmp_path):
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
import jax, jax.numpy as jnp
from aigc_jax import parallel
from aigc_jax.checkpoint import Checkpoints
checkpoints = Checkpoints({str(tmp_path)!r}, parallel.layout("jit"))
checkpoints.save(1, {{"x": jnp.ones(3)}})
checkpoints.wait()
checkpoints.save(2, {{"x": jnp.ones((16, 1024, 1024))}})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert steps_on_disk(tmp_path) == {1}
    left = [path for path in (tmp_path / "checkpoints").iterdir() if path.name != "1"]
    assert left  # else this shows nothing
    shapes = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with Checkpoints(tmp_path, layout(), read_only=True) as checkpoints:
        assert checkpoints.restore(shapes)[1] == 1
    assert all(path.exists() for path in left)
    with Checkpoints(tmp_path, layout()) as checkpoints:
        assert checkpoints.restore(shapes)[1] == 1
        checkpoints.save(2, {"x": jnp.ones(3)})
    assert not any(path.exists() for path in left)
    assert steps_on_disk(tmp_path) == {1, 2}


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_a_full_disk(small_disk):
    """1 MB of noise each: two fit, and then there is no room for the third."""

    def big(seed):
        return {"x": jax.random.normal(jax.random.key(seed), (256, 1200)), "none": None}

    with Checkpoints(small_disk, layout(), keep=9) as checkpoints:
        saved = []
        with pytest.raises(UserError, match=r"disk is full.* step \d is the last good") as error:
            for step in range(1, 9):
                checkpoints.save(step, big(step))
                checkpoints.wait()
                saved.append(step)
        assert len(saved) >= 2 and f"step {saved[-1]} is the last good" in str(error.value)
        assert "\n" not in str(error.value)
    with Checkpoints(small_disk, layout(), keep=9) as checkpoints:
        restored, step = checkpoints.restore(big(0))
    assert step == saved[-1]
    assert_same(restored, big(step))


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
@pytest.mark.parametrize("error", [None, KeyError])
def test_a_disk_found_full_at_the_end(small_disk, error, caplog):
    """It is named: in a warning where something else went wrong before."""
    noise = {"x": jax.random.normal(jax.random.key(0), (256, 1200))}
    (small_disk / "others").write_bytes(b"x" * (2 << 20))
    with (
        pytest.raises(
            error or UserError, match=None if error else "disk is full.* step 1 is the last"
        ),
        Checkpoints(small_disk, layout(), keep=9) as checkpoints,
    ):
        checkpoints.save(1, noise)
        checkpoints.wait()
        checkpoints.save(2, noise)
        if error:
            raise error
    assert steps_on_disk(small_disk) == {1}
    assert not error or "disk is full" in caplog.text
