"""The VAE family's figures on MNIST: likelihoods beside the papers', labels of conditional samples.

    AIGC_DATA_DIR=... python benchmarks/vae.py [NAME ...]

Trains by the command line what isn't trained yet (an interrupted run continues), measures it on the
test images, and prints a table; `--workdir` keeps runs, scores and the processor time they took.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import harness


class Experiment(NamedTuple):
    """A config with what differs, and how it is measured."""

    config: str
    steps: int
    fields: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ("--metrics=elbo,nll,active_units", "--k=500")
    published: str = ""


_IWAE = ("kl_warmup_steps=0", "objective=iwae")
EXPERIMENTS = {
    "vae": Experiment("mnist_vae", 320_000, published="86.76"),
    "vae_20_epochs": Experiment("mnist_vae", 12_000, ("kl_warmup_steps=0",)),
    "iwae_5_20_epochs": Experiment("mnist_vae", 12_000, (*_IWAE, "num_samples=5")),
    "iwae_50_20_epochs": Experiment("mnist_vae", 12_000, (*_IWAE, "num_samples=50")),
    "conv": Experiment(
        "mnist_conv_vae", 20_000,
        evaluate=("--metrics=elbo,nll,active_units", "--k=500", "--num=2000"),
    ),
    "conditional": Experiment(
        "mnist_cvae", 15_000, evaluate=("--metrics=elbo,nll,active_units,fid,label_accuracy",)
    ),
}  # fmt: skip


def aigc(*args: str) -> dict[str, float]:
    """Runs one command; returns the wall and processor seconds it took."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "aigc_jax", *args], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"wall_s": time.perf_counter() - started, "cpu_s": cpu}


def classifier(folder: Path) -> Path:
    """The workdir of the judge, trained if need be."""
    workdir = folder / "classifier"
    if not (workdir / "checkpoints" / "1500").exists():
        aigc("train", "--config=mnist_classifier", f"--workdir={workdir}", "--config.image_size=28")
    return workdir


def trained(name: str, folder: Path) -> dict[str, float]:
    """Trains one experiment, if it isn't, and tells what that took in all its launches."""
    it, workdir, record = EXPERIMENTS[name], folder / name, folder / f"{name}.train.json"
    facts = json.loads(record.read_text()) if record.exists() else {"wall_s": 0.0, "cpu_s": 0.0}
    if not (workdir / "checkpoints" / str(it.steps)).exists():
        took = aigc(
            "train", f"--config={it.config}", f"--workdir={workdir}",
            f"--config.num_train_steps={it.steps}", "--config.eval.extractor=",
            "--config.eval.nll_samples=10", *[f"--config.{field}" for field in it.fields],
        )  # fmt: skip
        facts = {key: facts[key] + took[key] for key in facts}
        record.write_text(json.dumps(facts))
    return facts


def run(name: str, folder: Path) -> dict:
    """Trains and measures one experiment, or reads back that it was."""
    it, facts = EXPERIMENTS[name], trained(name, folder)
    scores, through = folder / f"{name}.scores.json", ()
    if not scores.exists():
        if "fid" in it.evaluate[0]:
            through = (f"--extractor={classifier(folder)}",)
        told = (*it.evaluate, *through, f"--json={scores}")
        aigc("evaluate", f"--fake={folder / name}", *told)
    return {**facts, "steps": it.steps, "scores": json.loads(scores.read_text())}


def row(name: str, facts: dict) -> tuple:
    scores = facts["scores"]
    accuracy = scores.get("label_accuracy")
    return (
        name, facts["steps"], f"{facts['wall_s'] / 60:.1f}", f"{facts['cpu_s'] / 60:.1f}",
        f"{-scores['elbo']['value']:.2f}", f"{scores['nll']['value']:.2f}", scores["nll"]["k"],
        scores["nll"]["n"], EXPERIMENTS[name].published, scores["active_units"]["value"],
        f"{accuracy['value']:.2%}" if accuracy else "",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_vae"))
    options = parser.parse_args()
    names = options.names or list(EXPERIMENTS)
    if unknown := set(names) - set(EXPERIMENTS):
        parser.error(
            f"no experiment {', '.join(sorted(unknown))}: take of {', '.join(EXPERIMENTS)}"
        )
    options.workdir.mkdir(parents=True, exist_ok=True)
    rows = [row(name, run(name, options.workdir)) for name in names]
    print(harness.machine("jax", "flax"))
    heads = (
        "run", "steps", "minutes", "processor minutes", "-ELBO", "NLL", "k", "images", "published",
        "active units", "label accuracy",
    )  # fmt: skip
    print(harness.table(heads, rows))


if __name__ == "__main__":
    main()
