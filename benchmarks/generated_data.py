"""Does a classifier gain by generated images? 500 real digits, and what a GAN makes of them.

    python benchmarks/generated_data.py [--out runs/generated_data] [--seeds 2]

A class-conditional GAN learns the first 500 images of MNIST and nothing else, with DiffAugment's
translation; 10,000 of its samples, all or those that a classifier of the same 500 is sure of, are
written as a data set. Classifiers of one size and as many steps are trained on the 500, on the
samples, on both half and half, with plain augmentation and without, and read the 10,000 test
images. What is there already is not made again.
"""

import argparse
from pathlib import Path

import harness
import numpy as np

REAL, SPLIT = "tfds:mnist/train[:500]", "train[:500]"
PLAIN = "rotate(10),shear(10),translate(0.08),zoom(0.1)"
GAN = {
    "data.split": SPLIT, "generator.width": 32, "discriminator.width": 32, "num_train_steps": 3000,
    "optimizer.lr": 4e-4, "d_augment": "translation", "eval.metrics": "fid,prdc,label_accuracy",
}  # fmt: skip


def trained(name: str, workdir: Path, fields: dict):
    """The run of a config with some fields changed."""
    from aigc_jax import config as configs
    from aigc_jax import runs, train

    config = configs.load(name)
    mix = fields.pop("data.mix", ())
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    config = configs.override(config, flags)
    config.data.mix = mix
    train.run(config, workdir)
    return runs.load(workdir)


def accuracy(run) -> float:
    """Of the test images."""
    from aigc_jax import evaluate

    return evaluate.run_scores(run, ["accuracy"]).scores["accuracy"]["value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/generated_data"))
    parser.add_argument("--n", type=int, default=10_000, help="generated images")
    parser.add_argument("--steps", type=int, default=1500, help="of each classifier")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    from aigc_jax import exporting

    common = {"num_train_steps": options.steps, "data.split": SPLIT}
    judge = trained("mnist_classifier", options.out / "judge", common | {"augment": PLAIN})
    told = {"eval.extractor": str(judge.workdir.absolute())}
    gan = trained("mnist_dcgan", options.out / "gan", GAN | told)
    made = {}
    for name, keep in {"all": "", "sure": "confidence(0.9)"}.items():
        place = options.out / f"samples_{name}"
        if not (place / "manifest.json").exists():
            exporting.export(gan, place, options.n, form="tfds", keep=keep)
        made[name] = f"generated:{place.absolute()}"
    arms = {
        "500 real": {},
        "500 real, augmented": {"augment": PLAIN},
        f"{options.n:,} generated": {"data.source": made["all"], "eval.source": "tfds:mnist"},
        f"{options.n:,} generated, sure ones": {
            "data.source": made["sure"], "eval.source": "tfds:mnist",
        },
        "both, half and half": {"data.mix": ((REAL, 0.5), (made["all"], 0.5))},
        "both, sure ones": {"data.mix": ((REAL, 0.5), (made["sure"], 0.5))},
        "both, sure ones, augmented": {
            "data.mix": ((REAL, 0.5), (made["sure"], 0.5)), "augment": PLAIN,
        },
    }  # fmt: skip
    rows = []
    for number, (name, fields) in enumerate(arms.items()):
        found = []
        for seed in range(options.seeds):
            workdir = options.out / f"classifier_{number}_{seed}"
            run = trained("mnist_classifier", workdir, common | fields | {"seed": seed})
            found.append(100 * accuracy(run))
        each = ", ".join(f"{x:.2f}" for x in found)
        rows.append((name, f"{np.mean(found):.2f}%", each))
        print(*rows[-1], flush=True)
    print(harness.table(("trained on", "test accuracy", "each seed"), rows))
    print(harness.machine("jax"))


if __name__ == "__main__":
    main()
