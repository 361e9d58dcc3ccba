"""NL-means against scikit-image's: the time of one image, and PSNR on BSD68.

    AIGC_DATA_DIR=... python benchmarks/nl_means.py [speed] [psnr] [--quick 8]

speed: milliseconds for a grey image of 512x512 pixels with patch 7 and search 21, each side in a
process of its own, in turn.

psnr: noise is added in floats and not clipped, seeded by (0, image); results are rounded to 8 bits.
At equal parameters these are patch 7, search 21, h = 0.6 sigma, what scikit-image advises for its
slow mode; its fast mode's advice is 0.8. Ours is also given as it is by default, and the other
filters with their parameters for the noise. scikit-image's slow mode takes most of the time.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator

import harness
import numpy as np

LEVELS = (15, 25, 50)
PATCH, SEARCH = 7, 21


def side(denoise: Callable, options: argparse.Namespace):
    """`(run, facts)`: a step is one image; the first call compiles where there is a compiler."""
    from skimage import data

    image = data.camera().astype(np.float32)[: options.image_size, : options.image_size] / 255
    image += np.random.default_rng(0).normal(0, 25 / 255, image.shape).astype(np.float32)
    started = time.perf_counter()
    denoise(image, 25 / 255, 0.6)
    facts = {"first_s": time.perf_counter() - started, "image": image.shape}
    return harness.timer(lambda: denoise(image, 25 / 255, 0.6), lambda: None), facts


def ours(options: argparse.Namespace):
    """aigc_jax, float32."""
    return side(our_nl_means(), options)


def skimage_fast(options: argparse.Namespace):
    """scikit-image with integral images, float32."""
    return side(functools.partial(their_nl_means, fast=True), options)


def skimage_slow(options: argparse.Namespace):
    """scikit-image's patches weighted by a Gaussian, float32."""
    return side(functools.partial(their_nl_means, fast=False), options)


def our_nl_means() -> Callable:
    """(image, sigma, h / sigma) -> image; a new program for each size of images."""
    import jax

    from aigc_jax import filters

    @jax.jit
    def denoise(image, sigma, h):
        return filters.nl_means(image, sigma, patch_size=PATCH, search=SEARCH, h=h * sigma)

    return lambda *args: np.asarray(denoise(*args))


def their_nl_means(image: np.ndarray, sigma: float, h: float, *, fast: bool) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    options = {"patch_size": PATCH, "patch_distance": SEARCH // 2, "fast_mode": fast}
    return denoise_nl_means(image, sigma=sigma, h=h * sigma, **options)


SIDES = {"ours": ours, "skimage-fast": skimage_fast, "skimage-slow": skimage_slow}


def speed(options: argparse.Namespace) -> None:
    """Prints the table of times."""
    workers = [
        harness.Worker(SIDES[name], options, threads=options.threads) for name in options.sides
    ]
    times = harness.take_turns(workers, options.rounds, options.steps)
    for worker in workers:
        worker.stop()
    size = "x".join(map(str, workers[0].facts["image"]))
    print(f"NL-means, {size} grey, patch {PATCH}, search {SEARCH}, {options.threads} cores: ms\n")
    reference = harness.summary(times[0])
    rows = []
    for name, worker, measured in zip(options.sides, workers, times, strict=True):
        found = harness.summary(measured)
        ratio = found["minimum"] / reference["minimum"]
        rows.append((name, found["median"], found["minimum"], ratio, worker.facts["first_s"]))
    first = options.sides[0]
    print(harness.table(("", "median", "minimum", f"minimum / {first}'s", "first call, s"), rows))


def methods(options: argparse.Namespace) -> dict[str, Callable]:
    """name -> (image (H, W) in [-1, 1], sigma) -> image."""
    import jax

    from aigc_jax import filters

    compiled = {
        name: jax.jit(denoise, static_argnums=1) for name, denoise in filters.DENOISERS.items()
    }
    default = compiled.pop("nlmeans")
    slow = functools.partial(their_nl_means, fast=False, h=0.6)
    found = {"noisy": lambda image, sigma: image}
    found |= compiled
    found["scikit-image, fast, h 0.8 sigma"] = functools.partial(their_nl_means, fast=True, h=0.8)
    found |= {} if options.no_slow else {"scikit-image, slow, h 0.6 sigma": slow}
    equal = our_nl_means()
    found["ours, equal parameters"] = lambda image, sigma: equal(image, sigma, 0.6)
    return found | {"ours": default}


def psnr(options: argparse.Namespace) -> None:
    """Prints the table of mean PSNR."""
    images = list(pictures(options))
    rows = []
    for name, denoise in methods(options).items():
        rows.append((name, *(f"{mean_psnr(denoise, images, level):.2f}" for level in LEVELS)))
        print(*rows[-1], flush=True)
    print(f"\nPSNR in dB, the mean of {len(images)} images of {options.source}\n")
    print(harness.table(("", *(f"sigma {level}" for level in LEVELS)), rows))


def pictures(options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Grey images (H, W) of 8 bits."""
    from aigc_jax.data import as_is, pictures

    for file in pictures.find(options.source)[: options.quick]:
        yield as_is.read(file.path)[0][..., 0]


def mean_psnr(denoise: Callable, images: list[np.ndarray], level: int) -> float:
    """Over images of 8 bits, of noise of this standard deviation in grey levels."""
    found = []
    for i, clean in enumerate(images):
        noise = np.random.default_rng((0, i)).normal(0, level, clean.shape)
        noisy = ((clean + noise) / 127.5 - 1).astype(np.float32)
        result = np.clip(np.round((np.asarray(denoise(noisy, level / 127.5)) + 1) * 127.5), 0, 255)
        found.append(20 * np.log10(255) - 10 * np.log10(np.mean((result - clean) ** 2)))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["speed", "psnr"], help="speed, psnr or both")
    parser.add_argument("--image-size", type=int, default=512, help="of speed; 512 at most")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "skimage-fast"])
    parser.add_argument("--threads", type=int, default=2, help="cores a side may use")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument("--steps", type=int, default=3, help="images a turn")
    parser.add_argument("--source", default="folder:bsd/Set68", help="of psnr; grey images")
    parser.add_argument("--quick", type=int, help="only so many images, the first")
    parser.add_argument("--no-slow", action="store_true", help="without scikit-image's slow mode")
    options = parser.parse_args()
    parts = {"speed": speed, "psnr": psnr}
    unknown = set(options.parts) - set(parts)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    for part in options.parts:
        parts[part](options)
        print()
    print(harness.machine("jax", "jaxlib", "scikit-image"))


if __name__ == "__main__":
    main()
