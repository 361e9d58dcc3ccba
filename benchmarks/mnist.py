"""Class-conditional DCGAN on MNIST against the same GAN in PyTorch, after the same wall time.

    AIGC_DATA_DIR=... python benchmarks/mnist.py

Trains the judge (configs/mnist_classifier.py) unless its run is there, then ours by the command
line, launch and compilation included, then PyTorch's for the seconds that ours took. 10,000 images
of each, 1,000 a class, are read by the judge and compared with the 10,000 test images; the same
distance between training and test images is the floor. Table and grids go to --workdir.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import harness  # isort: skip


def train_judge(workdir: Path) -> None:
    if not (workdir / "checkpoints").exists():
        aigc("train", "--config=mnist_classifier", f"--workdir={workdir}")


def aigc(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "aigc_jax", *args], check=True)


def ours(options: argparse.Namespace) -> dict:
    """Trains by the command line; resumes where an earlier attempt stopped."""
    run = options.workdir / "ours"
    fields = [f"--config.num_train_steps={options.steps}", "--config.eval.extractor="]
    started = time.perf_counter()
    aigc("train", "--config=mnist_dcgan", f"--workdir={run}", *fields)
    seconds = time.perf_counter() - started
    aigc("sample", f"--workdir={run}", "--n=10000", f"--out={options.workdir / 'ours.npz'}")
    return {"seconds": seconds, "steps": options.steps}


def torch(options: argparse.Namespace, seconds: float) -> dict:
    """The twin, on the same images in memory, for the same time."""
    import torch
    import twin_torch

    from aigc_jax.data import sources

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    started = time.perf_counter()
    data = sources.load("tfds:mnist", split="train", image_size=32)
    gan = twin_torch.TorchGAN(32, 1, 10)
    rng, steps, batch = np.random.default_rng(0), 0, 64
    while time.perf_counter() - started < seconds:
        order = rng.permutation(data.num_examples)
        for rows in order[: len(order) // batch * batch].reshape(-1, batch):
            images = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2) / 127.5 - 1
            images = images.contiguous(memory_format=torch.channels_last)
            gan.step(images, torch.from_numpy(data.labels[rows]).long())
            steps += 1
            if time.perf_counter() - started >= seconds:
                break
    labels = np.arange(10_000, dtype=np.int32) % 10
    images = [gan.sample(500, torch.from_numpy(part).long()) for part in labels.reshape(-1, 500)]
    images = torch.cat(images).permute(0, 2, 3, 1).numpy()
    images = np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
    np.savez_compressed(options.workdir / "torch.npz", images, labels)
    return {"seconds": seconds, "steps": steps}


def judge(options: argparse.Namespace, facts: dict[str, dict]) -> list[tuple]:
    """A row each: name, label accuracy, Frechet distance to test, diversity, steps, seconds."""
    import jax

    from aigc_jax import networks
    from aigc_jax.data import sources
    from aigc_jax.metrics.diversity import within_class_variance
    from aigc_jax.metrics.fid import frechet_distance
    from aigc_jax.metrics.statistics import moments

    reader = networks.classifier(options.workdir / "classifier")
    apply = jax.jit(reader.apply)

    def read(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [apply(reader.variables, x) for x in images.reshape(-1, 500, *images.shape[1:])]
        logits, features = (np.concatenate([x[k] for x in parts]) for k in ("logits", "features"))
        return logits.argmax(-1), features

    def variance(images: np.ndarray, labels: np.ndarray) -> float:
        return float(within_class_variance(images.astype(np.float32) / 127.5, labels, 10))

    test = sources.load("tfds:mnist", split="test", image_size=32)
    train = sources.load("tfds:mnist", split="train[:10000]", image_size=32)
    real = moments(read(test.images)[1])
    sides = {
        "train images": (train.images, train.labels),
        "test images": (test.images, test.labels),
    }
    for name in facts:
        with np.load(options.workdir / f"{name}.npz") as file:
            sides[name] = file["arr_0"], file["arr_1"]
    rows = []
    for name, (images, labels) in sides.items():
        read_labels, features = read(images)
        rows.append(
            (
                name,
                f"{(read_labels == labels).mean():.2%}",
                f"{frechet_distance(*moments(features), *real):.4f}",
                f"{variance(images, labels) / variance(test.images, test.labels):.3f}",
                facts.get(name, {}).get("steps", ""),
                facts.get(name, {}).get("seconds", ""),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4800, help="of ours; about 10 minutes here")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_mnist"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    record = options.workdir / "facts.json"
    facts = json.loads(record.read_text()) if record.exists() else {}
    train_judge(options.workdir / "classifier")
    if "ours" not in facts:
        facts["ours"] = ours(options)
        record.write_text(json.dumps(facts))
    if "torch" not in facts:
        facts["torch"] = torch(options, facts["ours"]["seconds"])
        record.write_text(json.dumps(facts))
    print(harness.machine("jax", "flax", "torch"))
    heads = ("images", "label accuracy", "Frechet distance", "diversity", "steps", "seconds")
    print(harness.table(heads, judge(options, facts)))


if __name__ == "__main__":
    main()
