"""A GAN on few images: what augmenting that its discriminator sees is worth.

    python benchmarks/few_images.py cifar10 [--out runs/few_cifar10]
    python benchmarks/few_images.py mnist

Three runs of one config, with DiffAugment, with ADA and with neither, are trained (or continued, or
read, where they are there): the config `cifar10_dcgan:cpu` on a tenth of CIFAR-10, `mnist_dcgan` on
1,000 digits with what keeps a digit a digit. All are measured beside the test images, by a judge
trained on all training images. Writes into --out: `distances.png` and `samples.png`.
"""

import argparse
from pathlib import Path

import harness
import numpy as np

SETS = {
    "cifar10": {
        "config": "cifar10_dcgan:cpu", "judge": "cifar10_classifier", "split": "train[:10%]",
        "diffaugment": "color,translation,cutout",
        "fields": {"ada.kimg": 100.0},
    },
    "mnist": {
        "config": "mnist_dcgan", "judge": "mnist_classifier", "split": "train[:1000]",
        "diffaugment": "translation",
        "fields": {
            "generator.width": 32, "discriminator.width": 32, "num_train_steps": 4000,
            "optimizer.lr": 4e-4, "eval.every": 1000, "ada.kimg": 100.0,
        },
    },
}  # fmt: skip
METRICS = "fid,prdc,label_accuracy"


def trained(options: argparse.Namespace, arm: str, judge: Path):
    """The run of an arm, at its end."""
    from aigc_jax import config as configs
    from aigc_jax import runs, train

    known = SETS[options.set]
    fields = known["fields"] | {
        "data.split": known["split"], "eval.extractor": str(judge), "eval.metrics": METRICS,
        "d_augment": {"none": "", "diffaugment": known["diffaugment"], "ada": "ada"}[arm],
    }  # fmt: skip
    if options.steps:
        fields["num_train_steps"] = options.steps
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = configs.override(configs.load(known["config"]), flags)
    train.run(config, options.out / arm)
    return runs.load(options.out / arm)


def judged(options: argparse.Namespace) -> Path:
    """The judge's workdir."""
    from aigc_jax import config as configs
    from aigc_jax import train

    if options.judge:
        return options.judge.absolute()
    train.run(configs.load(SETS[options.set]["judge"]), options.out / "judge")
    return (options.out / "judge").absolute()


def curve(workdir: Path) -> dict[int, dict]:
    """The scores of each step that was measured."""
    from aigc_jax import scores

    return {line["step"]: line["scores"] for line in scores.read(workdir)}


def plot(curves: dict[str, dict[int, dict]], path: Path) -> None:
    """Distance and recall over training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, found in curves.items():
        steps = sorted(found)
        left.plot(steps, [found[s]["fid"]["value"] for s in steps], "o-", label=arm)
        right.plot(steps, [found[s]["prdc"]["recall"] for s in steps], "o-", label=arm)
    left.set(xlabel="steps", title="Frechet distance to the test images", ylim=(0, None))
    right.set(xlabel="steps", title="recall", ylim=(0, None))
    left.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--out", type=Path, help="default: runs/few_<set>")
    parser.add_argument("--judge", type=Path, help="a classifier's workdir; else one is trained")
    parser.add_argument("--steps", type=int, help="in place of the config's")
    parser.add_argument("--arms", nargs="+", default=["none", "diffaugment", "ada"])
    options = parser.parse_args()
    options.out = options.out or Path(f"runs/few_{options.set}")
    from aigc_jax import sampling
    from aigc_jax.writers import save_png, tile

    judge, rows, grid, curves = judged(options), [], [], {}
    for arm in options.arms:
        run = trained(options, arm, judge)
        curves[arm] = found = curve(run.workdir)
        last, best = found[run.step], min(found, key=lambda step: found[step]["fid"]["value"])
        rows.append((
            arm, run.step, f"{last['fid']['value']:.3f}", f"{found[best]['fid']['value']:.3f}",
            best, *(f"{last['prdc'][name]:.3f}" for name in ("precision", "recall", "coverage")),
            f"{100 * last['label_accuracy']['value']:.1f}%",
        ))  # fmt: skip
        drawn = sampling.generate(run, 40)[0]
        grid += [drawn[:20], drawn[20:]]
    head = "D sees", "steps", "distance", "best", "at", "precision", "recall", "coverage", "read"
    print(harness.table(head, rows))
    plot(curves, options.out / "distances.png")
    save_png(tile(np.stack(grid)), options.out / "samples.png")
    print(f"Look at {options.out}. {harness.machine('jax')}")


if __name__ == "__main__":
    main()
