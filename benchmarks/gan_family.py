"""The GAN family on MNIST, 32x32, after some minutes of a CPU core each, read by one classifier.

    AIGC_DATA_DIR=... python benchmarks/gan_family.py [NAME ...] [--train_only]

Trains by the command line what isn't trained yet (an interrupted run continues): the `:mnist`
presets of the family's configs. The classifier of `mnist_classifier` reads 10,000 samples of
each: their Frechet distance to the 10,000 test images in its features, precision, recall and
coverage, and how many are read as the class that they were asked to be. Writes `samples.png` into
--workdir, two rows a member.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import harness
import numpy as np

MEMBERS = ("dcgan", "wgan_gp", "sngan", "sagan", "biggan", "stylegan2", "r3gan")
METRICS = "fid,prdc,label_accuracy"


def command(*arguments: str) -> float:
    """Runs `aigc` and tells the processor minutes that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "aigc_jax", *arguments], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def trained(name: str, folder: Path) -> float:
    """Processor minutes of the launch that ended a run's training; trains it if need be."""
    record = folder / f"{name}.json"
    if not record.exists():
        config = "mnist_classifier" if name == "judge" else f"cifar10_{name}:mnist"
        flags = [f"--config={config}", f"--workdir={folder / name}"]
        if name != "judge":
            flags += [f"--config.eval.extractor={(folder / 'judge').absolute()}"]
            flags += [f"--config.eval.metrics={METRICS}"]
        minutes = command("train", *flags)
        from aigc_jax import runs

        run = runs.load(folder / name)
        if run.step < run.config.num_train_steps:
            raise SystemExit(f"{name} was stopped at step {run.step}: the same command continues.")
        record.write_text(json.dumps({"minutes": minutes}))
    return json.loads(record.read_text())["minutes"]


def scores_of(name: str, folder: Path) -> dict:
    """What was measured last of a run."""
    from aigc_jax import scores

    return scores.read(folder / name)[-1]


def training_images(folder: Path) -> dict:
    """The same of 10,000 training images in place of samples."""
    out = folder / "training_images.json"
    if not out.exists():
        from aigc_jax.data import sources

        for side, split in (("real", "test"), ("fake", "train[:10000]")):
            data = sources.load("tfds:mnist", split=split, image_size=32)
            np.savez(folder / f"{side}.npz", data.images, data.labels)
        sides = f"--real={folder / 'real.npz'}", f"--fake={folder / 'fake.npz'}"
        extractor = f"--extractor={folder / 'judge'}"
        command("evaluate", *sides, extractor, "--metrics=fid,prdc", f"--json={out}")
    return json.loads(out.read_text())


def row(name: str, steps: object, minutes: str, found: dict) -> tuple:
    prdc = found["prdc"]
    read = found.get("label_accuracy", {}).get("value")
    return (
        name, steps, minutes, f"{found['fid']['value']:.3f}",
        *(f"{prdc[key]:.3f}" for key in ("precision", "recall", "coverage")),
        "" if read is None else f"{100 * read:.1f}%",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEMBERS))
    parser.add_argument("--workdir", type=Path, default=Path("runs/gan_family"))
    parser.add_argument("--train_only", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - {*MEMBERS, "judge"}:
        parser.error(f"no member {', '.join(unknown)}: take of {', '.join(MEMBERS)}")
    folder = options.workdir
    folder.mkdir(parents=True, exist_ok=True)
    trained("judge", folder)
    names = [name for name in options.names or MEMBERS if name != "judge"]
    minutes = {name: trained(name, folder) for name in names}
    if options.train_only:
        return
    from aigc_jax import runs, sampling
    from aigc_jax.writers import save_png, tile

    known = training_images(folder)
    rows = [row("10,000 training images", "", "", known.get("scores", known))]
    grid = []
    for name in names:
        record = scores_of(name, folder)
        rows.append(row(name, record["step"], f"{minutes[name]:.1f}", record["scores"]))
        drawn = sampling.generate(runs.load(folder / name), 40)[0]
        grid += [drawn[:20], drawn[20:]]
    head = "", "steps", "minutes", "distance", "precision", "recall", "coverage", "read right"
    print(harness.table(head, rows))
    save_png(tile(np.stack(grid)), folder / "samples.png")
    print(f"Look at {folder / 'samples.png'}. {harness.machine('jax', 'flax')}")


if __name__ == "__main__":
    main()
