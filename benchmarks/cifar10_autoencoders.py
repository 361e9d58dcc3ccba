"""CIFAR-10: a plain VAE, a VQ-VAE with its prior, and the VQGAN loss: distances and sharpness.

    AIGC_DATA_DIR=... python benchmarks/cifar10_autoencoders.py [NAME ...]

Trains by the command line what isn't trained yet (an interrupted run continues). A classifier reads
test images, samples and reconstructions: the Frechet distance of its features is what is told. The
perceptual network is another classifier, so that nothing is judged by what it was trained with.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import harness  # isort: skip

# name -> config, steps, what differs; {folder} is the workdir of all.
RUNS = {
    "judge": ("cifar10_classifier", 2500, ()),
    "perceptual": ("cifar10_classifier", 800, ("seed=1", "model.width=16")),
    "vae": ("cifar10_vae", 3000, ()),
    "vqvae": ("cifar10_vqvae", 1500, ()),
    "vqgan": ("cifar10_vqgan", 1500, ("frozen.perceptual={folder}/perceptual",)),
    "vqvae_prior": ("cifar10_code_prior", 1600, ("frozen.autoencoder={folder}/vqvae",)),
}


def train(name: str, folder: Path) -> float:
    """Minutes that the training of a run took; trains it if need be."""
    record = folder / f"{name}.json"
    if not record.exists():
        config, steps, fields = RUNS[name]
        command = [
            sys.executable, "-m", "aigc_jax", "train", f"--config={config}",
            f"--workdir={folder / name}", f"--config.num_train_steps={steps}",
            "--config.eval.extractor=", "--config.eval.nll_samples=10",
            *(f"--config.{field.format(folder=folder)}" for field in fields),
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True)
        record.write_text(json.dumps({"minutes": (time.perf_counter() - started) / 60}))
    return json.loads(record.read_text())["minutes"]


class Judge:
    """Features of uint8 images by a classifier, beside those of CIFAR-10's test images."""

    def __init__(self, workdir: Path) -> None:
        import jax

        from aigc_jax import networks
        from aigc_jax.data import sources

        self._network = networks.classifier(workdir)
        self._apply = jax.jit(self._network.apply)
        self.test = sources.load("tfds:cifar10", split="test", image_size=32)
        self._real, self._power = self._features(self.test.images), _power(self.test.images)

    def _features(self, images: np.ndarray) -> np.ndarray:
        parts = images.reshape(-1, 500, *images.shape[1:])
        return np.concatenate([self._apply(self._network.variables, x)["features"] for x in parts])

    def __call__(self, images: np.ndarray) -> tuple[str, str]:
        """Frechet distance to the test images, and sharpness beside them."""
        from aigc_jax.metrics.fid import frechet_distance
        from aigc_jax.metrics.spectrum import sharpness
        from aigc_jax.metrics.statistics import moments

        distance = frechet_distance(*moments(self._features(images)), *moments(self._real))
        return f"{distance:.3f}", f"{float(sharpness(self._power, _power(images))):.2f}"


def _power(images: np.ndarray) -> np.ndarray:
    import jax

    from aigc_jax.metrics.spectrum import power_spectrum

    spectrum = jax.jit(power_spectrum)
    parts = images.reshape(-1, 500, *images.shape[1:])
    return np.concatenate([spectrum(x.astype(np.float32) / 127.5 - 1) for x in parts])


def images_of(name: str, folder: Path, test: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Samples of a run, and its reconstructions of the test images, as far as it makes them."""
    import jax

    from aigc_jax import runs, sampling
    from aigc_jax.types import to_uint8

    run, found = runs.load(folder / name), {}
    if hasattr(run.method, "sample"):
        found["samples"] = sampling.generate(run, n)[0]
    if hasattr(run.method, "encode") and not name.endswith("_prior"):

        @jax.jit
        def reconstruct(state, images):
            batch = {"image": images}
            z = run.method.encode(run.spec, state, batch)
            return to_uint8(run.method.decode(run.spec, state, z, batch))

        parts = test[:n].reshape(-1, 500, *test.shape[1:]).astype(np.float32) / 127.5 - 1
        found["reconstructions"] = np.concatenate([reconstruct(run.state, x) for x in parts])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmark_cifar10"))
    parser.add_argument("--num", type=int, default=10_000, help="images, a multiple of 500")
    parser.add_argument("--train_only", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - set(RUNS):
        parser.error(f"no run {', '.join(unknown)}: take of {', '.join(RUNS)}")
    folder = options.workdir
    folder.mkdir(parents=True, exist_ok=True)
    names = options.names or list(RUNS)
    minutes = {name: train(name, folder) for name in names}
    if options.train_only:
        return
    judge = Judge(folder / "judge")
    psnr = psnr_to(judge.test.images)
    rows = [("training images, 10,000", "", "", *judge(_training_images(options.num)), "")]
    for name in names:
        if name in ("judge", "perceptual"):
            continue
        for kind, images in images_of(name, folder, judge.test.images, options.num).items():
            quality = psnr(images) if kind == "reconstructions" else ""
            steps = RUNS[name][1]
            rows.append((f"{name}, {kind}", steps, f"{minutes[name]:.1f}", *judge(images), quality))
    print(harness.machine("jax", "flax"))
    heads = ("images", "steps", "minutes", "Frechet distance to test", "sharpness", "PSNR")
    print(harness.table(heads, rows))


def _training_images(n: int) -> np.ndarray:
    from aigc_jax.data import sources

    return sources.load("tfds:cifar10", split=f"train[:{n}]", image_size=32).images


def psnr_to(real: np.ndarray):
    """A function of reconstructions of `real`: their mean PSNR, in dB."""

    def psnr(fake: np.ndarray) -> str:
        error = (real[: len(fake)].astype(np.float64) - fake) ** 2
        return f"{np.mean(10 * np.log10(255**2 / error.mean((1, 2, 3)))):.2f}"

    return psnr


if __name__ == "__main__":
    main()
