"""The default run, judged: are its digits the right ones, and as varied as real ones?

    aigc train && python benchmarks/digits.py runs/digits_dcgan

Independent of this library's own classifier: a support vector machine on the pixels of real
digits. Prints its accuracy on real test images and on samples, the variance within classes of
samples relative to real images, and how far samples lie from their nearest training image, beside
the same for real test images (0 would be a copy).
"""

import argparse
import json

import numpy as np
from sklearn.svm import SVC

from aigc_jax import runs, sampling
from aigc_jax.data import sources
from aigc_jax.metrics.diversity import within_class_variance


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def nearest(a: np.ndarray, b: np.ndarray) -> float:
    """The median over a of the distance to the nearest of b."""
    square = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return float(np.median(np.sqrt(np.maximum(square.min(1), 0))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--json")
    args = parser.parse_args()
    run = runs.load(args.workdir)
    size = run.config.image_size
    train, test = (sources.load("digits", split=s, image_size=size) for s in ("train", "test"))
    judge = SVC(C=10, gamma="scale").fit(flat(train.images), train.labels)
    images, labels = sampling.generate(run, args.n, seed=1)
    right = judge.predict(flat(images)) == labels
    variance = [
        float(within_class_variance(x.astype(np.float32) / 127.5, y, 10))
        for x, y in ((images, labels), (train.images, train.labels))
    ]
    found = {
        "step": run.step,
        "svm_accuracy_real": float(judge.score(flat(test.images), test.labels)),
        "svm_accuracy_samples": float(right.mean()),
        "by_class": [round(float(right[labels == k].mean()), 3) for k in range(10)],
        "diversity": variance[0] / variance[1],
        "nearest_train_samples": nearest(flat(images), flat(train.images)),
        "nearest_train_real_test": nearest(flat(test.images), flat(train.images)),
    }
    for name, value in found.items():
        print(f"{name:26s} {value}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
