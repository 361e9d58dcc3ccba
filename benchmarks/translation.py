"""Translation by the shipped configs: trains by the command line, and tells what was measured.

    AIGC_DATA_DIR=... python benchmarks/translation.py [NAME ...]

What isn't trained yet is trained (an interrupted run continues), the judges first: classifiers of
MNIST and of CIFAR-10. The rows beside each run are the image copied, and the target's mean colour.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import harness  # isort: skip

# name -> config, what differs; {folder} is the workdir of all.
MNIST, CIFAR10 = "eval.extractor={folder}/mnist_judge", "eval.extractor={folder}/cifar10_judge"
JUDGES = {
    "mnist_judge": ("mnist_classifier", ("channels=3",)),
    "cifar10_judge": ("cifar10_classifier", ("num_train_steps=2500",)),
}
RUNS = {
    "cyclegan": ("mnistm_cyclegan", (MNIST,)),
    "cut": ("mnistm_cut", (MNIST,)),
    "pix2pix": ("cifar10_pix2pix", (CIFAR10,)),
    "stargan": ("mnist_stargan", ("channels=3", MNIST)),
}
METRICS = ("label_accuracy", "fid", "l1", "psnr", "within_5", "cycle_l1")


def train(name: str, folder: Path) -> float:
    """Minutes that the training of a run took; trains it if need be."""
    record = folder / f"{name}.json"
    if not record.exists():
        config, fields = (JUDGES | RUNS)[name]
        command = [
            sys.executable, "-m", "aigc_jax", "train", f"--config={config}",
            f"--workdir={folder / name}",
            *(f"--config.{field.format(folder=folder)}" for field in fields),
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True)
        record.write_text(json.dumps({"minutes": (time.perf_counter() - started) / 60}))
    return json.loads(record.read_text())["minutes"]


def rows(name: str, workdir: Path, minutes: float) -> list[tuple]:
    """The newest scores of a run: its baselines', then its own."""
    from aigc_jax import scores

    record = scores.read(workdir)[-1]
    found = scores.flat(record["scores"])
    lines = []
    for kind in ("constant_", "copied_", ""):
        values = [found.get(kind + metric, "") for metric in METRICS]
        values = [f"{x:.4g}" if x != "" else "" for x in values]
        facts = ("", "") if kind else (record["step"], f"{minutes:.1f}")
        lines.append((f"{name}, {kind.rstrip('_') or 'translated'}", *facts, *values))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_translation"))
    options = parser.parse_args()
    if unknown := set(options.names) - set(RUNS):
        parser.error(f"no run {', '.join(unknown)}: take of {', '.join(RUNS)}")
    folder = options.workdir
    folder.mkdir(parents=True, exist_ok=True)
    names = options.names or list(RUNS)
    for judge in JUDGES:
        if any(f"{{folder}}/{judge}" in field for name in names for field in RUNS[name][1]):
            train(judge, folder)
    minutes = {name: train(name, folder) for name in names}
    print(harness.machine("jax", "flax"))
    heads = ("images", "steps", "minutes", *METRICS)
    print(
        harness.table(
            heads, [r for name in names for r in rows(name, folder / name, minutes[name])]
        )
    )


if __name__ == "__main__":
    main()
