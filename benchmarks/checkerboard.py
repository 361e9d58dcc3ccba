"""The checkerboard that generators leave, by their way of doubling the size; before any training.

    python benchmarks/checkerboard.py [RUN]

Each of several generators with random weights translates two photographs of scikit-learn, cut into
squares; the power at the checkerboard's frequencies, beside that around them, is told: 1 is none.
With the workdir of a CycleGAN's run, its translations of held-out images in both directions too.
"""

import argparse

import harness
import numpy as np

SIDE, SEEDS = 64, 8


def photographs() -> np.ndarray:
    """(N, 64, 64, 3) float32 in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    tiles = [
        photo[y : y + SIDE, x : x + SIDE]
        for photo in load_sample_images().images
        for y in range(0, 427 - SIDE, SIDE)
        for x in range(0, 640 - SIDE, SIDE)
    ]
    return np.stack(tiles).astype(np.float32) / 127.5 - 1


def untrained(resample: str, images: np.ndarray) -> list[float]:
    """The checkerboard of the translations by generators of several seeds."""
    import jax

    from aigc_jax.metrics.spectrum import checkerboard
    from aigc_jax.models.resnet_translator import Generator

    module = Generator(width=16, blocks=3, resample=resample)

    @jax.jit
    def measure(seed):
        variables = module.init(jax.random.key(seed), images[:1])
        return checkerboard(module.apply(variables, images))

    return [float(measure(seed)) for seed in range(SEEDS)]


def trained(workdir: str) -> list[tuple]:
    """Rows of a run's translations, beside real images of the domain."""
    from aigc_jax import runs
    from aigc_jax.data import configured
    from aigc_jax.metrics.spectrum import checkerboard

    run = runs.load(workdir)
    rows = []
    for source, target in ("ab", "ba"):
        run.config.eval.direction = f"{source}2{target}"
        held = configured.held_out(run.config)
        images = next(iter(held))[source]
        real = next(iter(held.targets))["image"]
        made = run.method.translate(run.spec, run.state, images, f"{source}2{target}")
        rows.append((f"{workdir}, {source} to {target}", float(checkerboard(made)), ""))
        rows.append((f"real images of {target}", float(checkerboard(real)), ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="a CycleGAN's workdir")
    options = parser.parse_args()
    from aigc_jax.metrics.spectrum import checkerboard

    images = photographs()
    rows = [("the photographs", float(checkerboard(images)), "")]
    for resample in ("transpose", "nearest", "blur"):
        found = untrained(resample, images)
        rows.append((resample, float(np.median(found)), f"{min(found):.2f} to {max(found):.2f}"))
    rows += trained(options.run) if options.run else []
    print(harness.machine("jax", "flax"))
    print(harness.table(("images", "checkerboard", f"of {SEEDS} generators"), rows))


if __name__ == "__main__":
    main()
