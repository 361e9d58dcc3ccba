"""A run's workdir: the config as resolved, what it ran on, and the trained state read back."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import __version__, methods, parallel
from aigc_jax import config as configs
from aigc_jax.checkpoint import Checkpoints
from aigc_jax.errors import UserError
from aigc_jax.types import Batch

_PACKAGES = [
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow",
    "tensorflow-datasets",
    "clu",
    "numpy",
]


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run: `method.sample(spec, state, rng, batch)` works on it."""

    workdir: Path
    config: ConfigDict
    method: ModuleType
    spec: Any
    state: Any
    step: int


def is_run(path: str | Path) -> bool:
    """Whether `path` is a run's workdir."""
    try:
        return (Path(path) / "config.json").exists()
    except OSError:  # a folder above it can't be read
        return False


def claim(workdir: Path, config: ConfigDict, batch: Batch, class_names: Sequence[str] = ()) -> None:
    """Writes config.json and run.json, or checks that the run there is of the same config.

    Args:
      batch: any batch; its shapes are what `load` needs to know the state's.
      class_names: of the data, in the order of their labels; () where they have none.

    Raises:
      UserError: it is of another one; the line tells what differs.
    """
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file: name a folder.")
    if path.exists():
        old = configs.from_json(path.read_text())
        changed = configs.differences(old.to_dict(), _plain(config))
        if changed:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(changed)}): "
                "give the same config, or another --workdir."
            )
    if parallel.is_lead():
        write_json(path, _plain(config))
        write_json(workdir / "run.json", {**record(batch), "class_names": [*class_names]})


def write_json(path: Path, content: Any) -> None:
    """All of it or nothing, whenever the process is killed; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2) + "\n")
    new.replace(path)


def frozen(config: ConfigDict) -> dict[str, Any] | None:
    """What the runs named in `config.frozen` lend, on one device; None where it names none (or "").

    That is their method's `weights(state)`, or the whole state where it has no such function.
    """
    return {name: _lent(load(path)) for name, path in config.frozen.items() if path} or None


def _lent(run: Run) -> Any:
    return run.method.weights(run.state) if hasattr(run.method, "weights") else run.state


def class_names(workdir: str | Path, config: ConfigDict) -> list[str]:
    """What a run's labels mean, in their order; the numbers themselves where it wasn't told."""
    told = json.loads((Path(workdir) / "run.json").read_text()).get("class_names", [])
    known = len(told) == config.num_classes
    return told if known else [str(label) for label in range(config.num_classes)]


def record(batch: Batch) -> dict[str, Any]:
    """What a run runs on: versions, devices, platform, command; and what its batches hold."""
    return {
        "versions": {"aigc_jax": __version__} | {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "command": " ".join(sys.argv),
        "batch": {name: [list(x.shape[1:]), str(x.dtype)] for name, x in batch.items()},
    }


def load(workdir: str | Path, step: int | None = None) -> Run:
    """Reads a run back, for sampling or evaluation, onto one device.

    Args:
      step: of the checkpoint; None: the newest sound one.

    Raises:
      UserError: there is no run, or no checkpoint.
    """
    workdir = Path(workdir)
    config = configs.of_run(workdir)
    method = methods.load(config.method)
    spec = method.from_config(config)
    layout = parallel.layout("jit", jax.local_devices()[:1])
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no checkpoint yet: let `aigc train` reach its first.")
    with Checkpoints(workdir, layout, read_only=True) as checkpoints:
        restored = checkpoints.restore(_state_shapes(workdir, config, method, spec), step)
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint yet: let `aigc train` reach its first.")
    state, step = restored
    return Run(workdir, config, method, spec, settled(method, spec, state), step)


def settled(method: ModuleType, spec: Any, state: Any) -> Any:
    """The state as the method's `settle` leaves it for use, if it has one."""
    return method.settle(spec, state) if hasattr(method, "settle") else state


def _state_shapes(workdir: Path, config: ConfigDict, method: ModuleType, spec: Any) -> Any:
    """The state's shapes and dtypes, by tracing its initialisation on the batch of run.json."""
    fields = json.loads((workdir / "run.json").read_text())["batch"]
    batch = {
        name: jax.ShapeDtypeStruct((1, *shape), np.dtype(dtype))
        for name, (shape, dtype) in fields.items()
    }
    init = functools.partial(method.init_state, spec)
    return jax.eval_shape(init, jax.random.key(0), batch, frozen(config))


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
