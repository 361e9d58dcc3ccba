"""Samples a second into TFRecords, against the bare generator's.

    python benchmarks/write_samples.py [--n 50000]

A class-conditional DCGAN at its starting weights (a trained one is no faster) draws --n 32x32
images: once thrown away, once written by `aigc sample --as-dataset --format tfds`; and what memory
that takes at most, beside that of the drawing alone. Each in a process of its own.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import harness


def begun(workdir: Path, width: int) -> None:
    """A run of no more than a step."""
    from aigc_jax import config as configs
    from aigc_jax import train

    flags = [
        f"generator.width={width}", "discriminator.width=8", "num_train_steps=1",
        "eval.extractor=", "data.source=tfds:cifar10",
    ]  # fmt: skip
    flags = [f"--config.{flag}" for flag in flags]
    train.run(configs.override(configs.load("digits_dcgan"), flags), workdir)


def drawn(pipe, workdir: Path, n: int, out: Path | None, threads: int) -> None:
    """Sends seconds and the process's peak memory in MiB."""
    harness.use_cores(threads)
    from aigc_jax import exporting, runs, sampling

    run = runs.load(workdir)
    for _ in sampling.chunks(run, 512):  # compiled
        pass
    started = time.perf_counter()
    if out is None:
        for _ in sampling.chunks(run, n):
            pass
    else:
        exporting.export(run, out, n, form="tfds")
    seconds = time.perf_counter() - started
    pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=64, help="of the generator")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="cores")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        process = context.Process(target=begun, args=(folder / "run", options.width))
        process.start()
        process.join()
        found = {"drawn": [], "drawn and written": []}
        for turn in range(options.rounds):
            for name, each in found.items():
                out = folder / f"set_{turn}" if name != "drawn" else None
                ours, theirs = context.Pipe()
                args = theirs, folder / "run", options.n, out, options.threads
                process = context.Process(target=drawn, args=args)
                process.start()
                each.append(ours.recv())
                process.join()
    rates = {name: options.n / min(s for s, _ in each) for name, each in found.items()}
    rows = [
        (name, rate, rate / rates["drawn"], f"{max(m for _, m in found[name]):.0f}")
        for name, rate in rates.items()
    ]
    print(harness.table(("", "images/s", "/ drawn", "peak MiB"), rows))
    print(harness.machine("jax", "tensorflow-datasets"))


if __name__ == "__main__":
    main()
