"""What a run leaves to look at: metrics (JSONL, TensorBoard by clu), picture grids, a loss plot.

clu and TensorFlow are used where they are installed; without them TensorBoard logs are left out.
"""

import collections
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from aigc_jax import data

METRICS = "metrics.jsonl"


class Writers:
    """The logs of one workdir. Only the first process writes.

    Args:
      workdir: of the run.
      step: where the run (re)starts: later lines of an earlier attempt are dropped.
      active: False makes every call do nothing.
    """

    def __init__(self, workdir: str | Path, step: int = 0, active: bool = True) -> None:
        self.workdir, self.active = Path(workdir), active
        self._tensorboard = _tensorboard(self.workdir) if active else None
        self._lines = None
        self.rewind(step)

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._tensorboard:
            self._tensorboard.close()
        if self.active:
            self._lines.close()

    def rewind(self, step: int) -> None:
        """Drops the lines after a step, from which the run goes on."""
        if not self.active:
            return
        if self._lines is not None:
            self._lines.close()
        kept = [row for row in read_metrics(self.workdir) if row["step"] <= step]
        new = self.workdir / (METRICS + ".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in kept))
        new.replace(self.workdir / METRICS)  # at once, lest a kill loses what was logged
        self._lines = (self.workdir / METRICS).open("a")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to TensorBoard."""
        if not self.active or not values:
            return
        row = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._lines.write(json.dumps({"step": step, **row}) + "\n")
        self._lines.flush()
        if self._tensorboard:
            self._tensorboard.write_scalars(step, values)

    def grids(self, step: int, grids: dict[str, np.ndarray]) -> None:
        """`samples/<name>_<step>.png` for each (rows, columns, H, W, C) uint8 grid."""
        if not self.active:
            return
        for name, images in grids.items():
            grid = tile(images)
            save_png(grid, self.workdir / "samples" / f"{name}_{step:07d}.png")
            if self._tensorboard:
                self._tensorboard.write_images(step, {name: grid[None]})

    def parameters(self, state: Any) -> None:
        """The table of a state's parameters, for TensorBoard."""
        if self._tensorboard:
            self._tensorboard.write_texts(0, {"parameters": _overview(state)})

    def hooks(self, num_steps: int) -> list[Callable[[int], Any]]:
        """What to call after each step: steps per second and time left, to TensorBoard."""
        if not self._tensorboard:
            return []
        from clu import periodic_actions

        return [
            periodic_actions.ReportProgress(
                num_train_steps=num_steps,
                writer=self._tensorboard,
                every_steps=None,
                every_secs=30,
            )
        ]

    def plot(self) -> None:
        """`losses.png`: every metric of metrics.jsonl over steps."""
        if self.active:
            plot_metrics(read_metrics(self.workdir), self.workdir / "losses.png")


def read_metrics(workdir: str | Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, [] where there is none; a torn last line is left out."""
    path = Path(workdir) / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows.append({k: float(v) if isinstance(v, str) else v for k, v in row.items()})
    return rows


def tile(images: np.ndarray, padding: int = 2) -> np.ndarray:
    """(rows, columns, H, W, C) uint8 -> one (., ., C) picture, white lines between images."""
    rows, columns, height, width, channels = images.shape
    pad = [(0, 0), (0, 0), (0, padding), (0, padding), (0, 0)]
    images = np.pad(images, pad, constant_values=255)
    height, width = height + padding, width + padding
    grid = images.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    return np.pad(grid, [(padding, 0), (padding, 0), (0, 0)], constant_values=255)


def save_png(image: np.ndarray, path: str | Path) -> None:
    """(H, W, 1 or 3) uint8 -> a PNG; folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


def plot_metrics(rows: list[dict[str, float]], path: Path) -> None:
    """A panel for each group of metrics (losses first) over steps; scores of one step have none."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    counts = collections.Counter(name for row in rows for name in row)
    several = min(2, len(rows))
    names = [name for name in sorted(counts) if counts[name] >= several and name != "step"]
    panels: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (not name.endswith("loss"), name)):
        panels.setdefault(_panel(name), []).append(name)
    if not panels:
        return
    figure = Figure(figsize=(7, 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, members) in zip(axes, panels.items(), strict=True):
        for name in members:
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name, marker="" if len(points) > 1 else ".")
        axis.set_ylabel(title)
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=100)


def _panel(name: str) -> str:
    for ending in ("loss", "grad_norm", "accuracy"):
        if name.endswith(ending):
            return ending
    return "logits" if name in ("d_real", "d_fake") else name


def _tensorboard(workdir: Path) -> Any:
    try:
        data.tensorflow()  # first, so that it is quiet and off the accelerator
        from clu import metric_writers
    except ImportError as error:
        logging.warning("No TensorBoard logs: %s is not installed.", error.name)
        return None
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir / "tensorboard")))


def _overview(state: Any) -> str:
    from clu import parameter_overview

    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {jax.tree_util.keystr(path): x for path, x in leaves}
    params = {name: x for name, x in named.items() if "'params'" in name}
    return parameter_overview.get_parameter_overview(params, include_stats=False)
