"""DCGAN with too large a learning rate, with what stabilises it and without, and taken back.

    python benchmarks/instability.py

Scikit-learn's digits at 16x16, the config `digits_dcgan` at width 16, 1,600 steps each; a
classifier of the same images reads 500 samples every 200 steps. Without tricks: momentum 0.9 and no
averaged weights. Writes `instability.png` into --workdir: diversity, the distance over its best,
and how often D is right, over training; and `samples.png`, a row an arm.
"""

import argparse
import logging
from pathlib import Path

import harness
import numpy as np

COMMON = {
    "image_size": 16, "generator.width": 16, "discriminator.width": 16, "eval.every": 200,
    "eval.num_samples": 500, "sample_every": 400, "checkpoint_every": 200,
}  # fmt: skip
_PLAIN = {"optimizer.b1": 0.9, "ema.half_life": 0.0}
ARMS = {
    "as configured": {},
    "4 times the rate, no tricks": {"optimizer.lr": 2e-3, **_PLAIN},
    "4 times the rate, R1 and averaged weights": {
        "optimizer.lr": 2e-3, "r1": 2.0, "penalty_every": 4,
    },
    "16 times the rate, no tricks": {"optimizer.lr": 8e-3, **_PLAIN},
    "16 times the rate, no tricks, rolled back": {
        "optimizer.lr": 8e-3, **_PLAIN, "on_collapse": "rollback", "rollback.factor": 0.25,
    },
}  # fmt: skip
PANELS = ("diversity", "eval_fid_over_best", "d_accuracy")


class Lines(logging.Handler):
    """What was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def trained(name: str, fields: dict, folder: Path, judge: Path) -> tuple[Path, list[str]]:
    """The workdir of an arm, and when it was taken back."""
    from aigc_jax import config as configs
    from aigc_jax import train

    fields = COMMON | {"eval.extractor": str(judge)} | fields
    flags = [f"--config.{key}={value}" for key, value in fields.items()]
    lines, workdir = Lines(), folder / name.replace(" ", "_").replace(",", "")
    logging.getLogger().addHandler(lines)
    train.run(configs.override(configs.load("digits_dcgan"), flags), workdir)
    logging.getLogger().removeHandler(lines)
    return workdir, [line for line in lines.told if "Back to" in line]


def plot(curves: dict[str, list[dict]], path: Path) -> None:
    """A panel each of what the detectors look at."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for arm, rows in curves.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=arm)
        axis.set(title=name, xlabel="steps")
        axis.set_yscale("log" if name == "eval_fid_over_best" else "linear")
    axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/instability"))
    folder = parser.parse_args().workdir
    from aigc_jax import config as configs
    from aigc_jax import runs, sampling, train
    from aigc_jax.writers import read_metrics, save_png, tile

    judge = (folder / "judge").absolute()
    train.run(
        configs.override(configs.load("digits_classifier"), ["--config.image_size=16"]), judge
    )
    curves, rows, grid = {}, [], []
    for name, fields in ARMS.items():
        workdir, back = trained(name, fields, folder, judge)
        curves[name] = found = read_metrics(workdir)
        measured = [row for row in found if "eval_fid" in row]
        last, best = measured[-1], min(row["eval_fid"] for row in measured)
        ratio = max(row["eval_fid_over_best"] for row in measured)
        least = min(row["diversity"] for row in found if row["step"] >= 300)
        read = f"{100 * last['eval_label_accuracy']:.0f}%"
        distances = f"{best:.3g}", f"{last['eval_fid']:.3g}", f"{ratio:.3g}"
        rows.append((name, *distances, read, f"{least:.2f}", f"{last['d_accuracy']:.3f}"))
        for line in back:
            print(f"{name}: {line}")
        grid.append(sampling.generate(runs.load(workdir), 20)[0])
    head = ("", "best distance", "last", "most over its best", "read right", "least diversity",
            "D is right")  # fmt: skip
    print(harness.table(head, rows))
    plot(curves, folder / "instability.png")
    save_png(tile(np.stack(grid)), folder / "samples.png")
    print(f"Look at {folder}. {harness.machine('jax', 'flax')}")


if __name__ == "__main__":
    main()
