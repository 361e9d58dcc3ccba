"""Checkpoints of a run's state, by Orbax: asynchronous, verified, resumable to the bit.

A checkpoint is `<workdir>/checkpoints/<step>/`. Beside the arrays it holds the shape, dtype and
CRC-32 of each, so that a torn, corrupt or foreign one is known before it is used.
"""

import contextlib
import errno
import logging
import math
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from aigc_jax.errors import UserError
from aigc_jax.parallel import Layout, is_lead

_FOLDER, _ASIDE = "checkpoints", "checkpoints_corrupt"


class Checkpoints:
    """The checkpoints of one workdir. Every process makes one and calls it alike.

    Args:
      workdir: of the run.
      layout: how the state lies on devices.
      keep: how many of the newest are kept.
      best, best_mode: a metric given to `save`, "min" or "max"; its best checkpoint is kept too.
      read_only: changes nothing on the disk, so that a run can be read while it trains.
    """

    def __init__(
        self,
        workdir: str | Path,
        layout: Layout,
        keep: int = 3,
        best: str = "",
        best_mode: str = "min",
        read_only: bool = False,
    ) -> None:
        self.layout, self._read_only = layout, read_only
        self.directory = Path(workdir).absolute() / _FOLDER
        policies = ocp.checkpoint_managers
        keeps, self._best_fn = [policies.LatestN(max(1, keep))], None
        if best:
            # `best_fn` with `max_to_keep` would delete the newest checkpoint, so: either policy.
            worst = float("inf") if best_mode == "min" else float("-inf")
            self._best_fn = lambda metrics: _number(metrics.get(best), worst)
            keeps.append(
                policies.BestN(
                    get_metric_fn=self._best_fn,
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keeps),
                best_fn=self._best_fn,  # so that the metrics are saved too
                cleanup_tmp_directories=not read_only,  # what a killed save left
                create=not read_only,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            with self.naming_a_full_disk():
                self._manager.close()
        except UserError as full:
            if error is None:
                raise
            if str(full) != str(error):  # else a save has told it already
                logging.warning("%s", full)

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Saves in the background; a step that is there already is left as it is.

        Raises:
          UserError: the disk is full (here, or from the save before); older ones stay.
        """
        if step in self._manager.all_steps():
            return
        state = self.layout.to_global(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({"leaves": _leaves(state)})
        )
        with self.naming_a_full_disk():
            self._manager.save(step, args=args, metrics=(metrics or {}) if self._best_fn else None)

    @property
    def steps(self) -> list[int]:
        """Of all that are saved, in their order."""
        self.wait()
        return sorted(self._manager.all_steps())

    def discard(self, step: int) -> None:
        """Deletes a checkpoint, once it is all on the disk."""
        self.wait()
        self._manager.delete(step)

    def wait(self) -> None:
        """Until what was saved lies on the disk. UserError: the disk is full."""
        with self.naming_a_full_disk():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def naming_a_full_disk(self) -> Iterator[None]:
        """A UserError in place of whatever a full disk raises inside the context."""
        try:
            yield
        except Exception as error:
            if not _is_full_disk(error):
                raise
            last = "there is no checkpoint yet"
            if self.latest_step is not None:
                last = f"step {self.latest_step} is the last good checkpoint"
            where = self.directory.parent
            raise UserError(
                f"The disk is full: {where} could not be written; {last}. Free space."
            ) from error

    def restore(self, state: Any, step: int | None = None) -> tuple[Any, int] | None:
        """The newest sound checkpoint and its step; None where there is none.

        One that can't be read back is named in a warning, moved to `checkpoints_corrupt/`, and the
        one before it is taken.

        Args:
          state: a state of the same structure, or its shapes.
          step: this checkpoint and no other.

        Raises:
          UserError: it holds other arrays than `state`; `step` isn't there or can't be read; or
            none can be read, and then nothing is moved.
        """
        if step is not None:
            if step not in self._manager.all_steps():
                raise UserError(f"No checkpoint of step {step} in {self.directory}.")
            try:
                return self._read(state, step), step
            except _CorruptError as error:
                raise UserError(f"Checkpoint {self.directory / str(step)}: {error}.") from error
        corrupt = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(state, step)
            except _CorruptError as error:
                corrupt[step] = error
                continue
            for bad, error in corrupt.items():
                self._set_aside(bad, error)
            return restored, step
        if corrupt:
            raise UserError(
                f"None of the checkpoints in {self.directory} can be read "
                f"({next(iter(corrupt.values()))}): restore them, or name another --workdir."
            )
        return None

    def _read(self, state: Any, step: int) -> Any:
        shapes = jax.eval_shape(lambda: state)
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            self.layout.state_sharding(shapes),
        )
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            saved = meta["meta"]["leaves"]
            _check_same_arrays(saved, _leaves(shapes), self.directory / str(step))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            restored = self._manager.restore(step, args=args)["state"]
        except (UserError, MemoryError, PermissionError):
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise  # the device is out of memory: no fault of the checkpoint
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise _CorruptError(line[:150]) from error
        for name, leaf in _leaves(restored).items():
            crcs = {leaf["crc32"], saved[name]["crc32"]} - {None}
            if len(crcs) > 1:
                raise _CorruptError(f"{name} differs from what was saved (CRC-32)")
        return self.layout.from_global(restored)

    def _set_aside(self, step: int, error: Exception) -> None:
        if self._read_only:
            logging.warning(
                "Checkpoint %s can't be read (%s): taking the one before it.",
                self.directory / str(step),
                error,
            )
            return
        aside = self.directory.parent / _ASIDE / str(step)
        logging.warning(
            "Checkpoint %s can't be read (%s): moved to %s, taking the one before it.",
            self.directory / str(step),
            error,
            aside,
        )
        if is_lead():
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.move(self.directory / str(step), aside)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()


def _number(x: float | None, otherwise: float) -> float:
    return otherwise if x is None or math.isnan(x) else x


class _CorruptError(Exception):
    pass


def _leaves(tree: Any) -> dict[str, dict]:
    """{path: shape, dtype, CRC-32 of the bytes} of a tree of arrays.

    No CRC for shapes alone, nor for what this process doesn't hold whole.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _describe(leaf) for path, leaf in leaves}


def _describe(x: Any) -> dict:
    crc = None
    if isinstance(x, jax.Array) and (x.is_fully_addressable or x.is_fully_replicated):
        crc = zlib.crc32(np.ascontiguousarray(np.asarray(x)).reshape(-1).view(np.uint8))
    return {"shape": list(x.shape), "dtype": str(x.dtype), "crc32": crc}


def _check_same_arrays(saved: dict, wanted: dict, where: Path) -> None:
    for name in sorted({**saved, **wanted}):
        here, there = saved.get(name), wanted.get(name)
        if here and there and all(here[key] == there[key] for key in ("shape", "dtype")):
            continue
        says = [f"{x['dtype']}{x['shape']}" if x else "nothing" for x in (here, there)]
        raise UserError(
            f"Checkpoint {where} is of another network: {name} is {says[0]} there and {says[1]} "
            "here. Use the config it was trained with, or another workdir."
        )


def _is_full_disk(error: Exception) -> bool:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in ("No space left", "Disk quota exceeded"))
