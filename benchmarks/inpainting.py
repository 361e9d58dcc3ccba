"""Holes filled by what needs no training, by latent search, and by trained networks.

    AIGC_DATA_DIR=... python benchmarks/inpainting.py --judge runs/cifar10_classifier \\
        --search runs/cifar10_dcgan_cpu --workdir runs/cifar10_inpaint runs/bsd_inpaint

CIFAR-10's test images (32x32, colour), and crops of BSD68 (64x64, grey), under free-form masks that
are the same at each call. A run fills all of them, of whatever size it was trained on; a search
those of its run's size and channels. The Frechet distance is that of a CIFAR-10 classifier's
features of the filled images to those of the same images whole. The search is slow and takes the
first images alone, which are told once more for all; its time holds its compilation. Nothing is
trained here: `aigc train` does that. Needs `pip install opencv-python-headless scikit-image`.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import harness  # isort: skip

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]  # images uint8, masks (1 = known) -> uint8
BATCH, SEARCH = 100, "latent search"
HEADS = ("method", "images", "hole PSNR, dB", "PSNR, dB", "SSIM", "Frechet distance", "ms an image")


def cifar10(n: int) -> np.ndarray:
    """(n, 32, 32, 3) uint8, in the order of the test set."""
    from aigc_jax.data import sources

    return sources.load(f"tfds:cifar10/test[:{n}]", image_size=32).images


def bsd(n: int, size: int = 64) -> np.ndarray:
    """(n, 64, 64, 1) uint8 at random places of BSD68's images in turn."""
    from PIL import Image

    folder, rng = Path(os.environ["AIGC_DATA_DIR"], "images/bsd/Set68"), np.random.default_rng(0)
    whole = [np.asarray(Image.open(path).convert("L")) for path in sorted(folder.glob("*.png"))]

    def crop(image: np.ndarray) -> np.ndarray:
        y, x = (rng.integers(side - size + 1) for side in image.shape)
        return image[y : y + size, x : x + size, None]

    return np.stack([crop(whole[i % len(whole)]) for i in range(n)])


def mean_colour(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Of what is known of each image."""
    known = (images * masks).sum((1, 2), keepdims=True) / masks.sum((1, 2), keepdims=True)
    return np.broadcast_to(np.round(known), images.shape).astype(np.uint8)


def opencv(images: np.ndarray, masks: np.ndarray, name: str) -> np.ndarray:
    """`cv2.inpaint`, radius 3, "TELEA" (Telea 2004) or "NS" (Bertalmio et al. 2001)."""
    import cv2

    flag = getattr(cv2, f"INPAINT_{name}")
    pairs = zip(images, (masks < 0.5).astype(np.uint8), strict=True)
    made = [cv2.inpaint(np.ascontiguousarray(image), hole, 3, flag) for image, hole in pairs]
    return np.stack(made).reshape(images.shape)


def biharmonic(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """`skimage.restoration.inpaint_biharmonic`."""
    from skimage.restoration import inpaint_biharmonic

    pairs = zip(images / 255, masks[..., 0] < 0.5, strict=True)
    made = [inpaint_biharmonic(image, hole, channel_axis=-1) for image, hole in pairs]
    return np.clip(np.round(np.stack(made) * 255), 0, 255).astype(np.uint8)


def searching(workdir: str, steps: int, restarts: int, blend: bool) -> Fill:
    from aigc_jax import runs
    from aigc_jax.latent_search import Search

    return Search(runs.load(workdir), steps=steps, restarts=restarts, blend=blend, batch_size=50)


def restoring(workdir: str) -> Fill:
    """A run of the method `restoration`, by its averaged weights; grey images as colour ones."""
    import jax

    from aigc_jax import runs
    from aigc_jax.data.dataset import to_channels
    from aigc_jax.types import to_uint8

    run = runs.load(workdir)

    @jax.jit
    def fill(state, images, masks):
        return to_uint8(run.method.restore(run.spec, state, images / 127.5 - 1, masks))

    def of_any(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        seen = to_channels(images, run.config.channels).astype(np.float32)
        return to_channels(np.asarray(fill(run.state, seen, masks)), images.shape[-1])

    return of_any


def holed(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.where(masks > 0.5, images, np.uint8(128))


def filled(fill: Fill, images: np.ndarray, masks: np.ndarray, warm: bool) -> tuple:
    """All images, known pixels as they were, and milliseconds an image.

    Where `warm`, one batch goes first: compiling is then no part of the time.
    """
    given, parts = holed(images, masks), []
    if warm:
        fill(given[:BATCH], masks[:BATCH])
    started = time.perf_counter()
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        parts.append(np.where(masks[rows] > 0.5, images[rows], fill(given[rows], masks[rows])))
    return np.concatenate(parts), (time.perf_counter() - started) / len(images) * 1e3


class Judge:
    """The Frechet distance of images to others, by a classifier's features."""

    def __init__(self, workdir: str | None, channels: int) -> None:
        from aigc_jax import networks
        from aigc_jax.scoring import Viewer

        network = networks.classifier(workdir) if workdir else None
        fits = network is not None and network.channels == channels
        self._viewer = Viewer(network) if fits else None

    def __call__(self, images: np.ndarray, real: np.ndarray) -> str:
        """ "" where there is none of these channels, or images of another size than it reads."""
        from aigc_jax.metrics.fid import frechet

        viewer = self._viewer
        if viewer is None or viewer.extractor.size != real.shape[1:3]:
            return ""
        pair = [viewer.see(_Given(x), quiet=True).statistics for x in (images, real)]
        return f"{frechet(*pair).value:.3f}"


class _Given:
    """Arrays as `scoring.Images`."""

    def __init__(self, images: np.ndarray) -> None:
        self.name, self.n, self.size = "images", len(images), images.shape[1:3]
        self._images = images

    def batches(self, batch_size: int, transform: Callable | None = None):
        for start in range(0, self.n, batch_size):
            part = self._images[start : start + batch_size]
            yield part, np.ones(len(part), np.float32)


def quality(made: np.ndarray, real: np.ndarray, masks: np.ndarray) -> tuple[str, str, str]:
    """Means over images: PSNR of the hole's pixels and of all, and SSIM, of 8-bit images."""
    from aigc_jax.metrics.image_quality import hole_psnr, psnr, ssim

    x, y = (images.astype(np.float32) for images in (made, real))
    found = hole_psnr(x, y, masks, (0, 255)), psnr(x, y, (0, 255)), ssim(x, y, (0, 255))
    # An image that is filled exactly has a PSNR of inf.
    means = [np.mean(x[np.isfinite(x)]) for x in map(np.asarray, found)]
    return tuple(f"{mean:.{d}f}" for mean, d in zip(means, (2, 2, 4), strict=True))


def methods(options: argparse.Namespace, images: np.ndarray) -> dict[str, Fill]:
    """Name -> what fills; a search's name says so."""
    from aigc_jax import config as configs

    found: dict[str, Fill] = {
        "mean colour": mean_colour,
        "Telea (OpenCV)": functools.partial(opencv, name="TELEA"),
        "Navier-Stokes (OpenCV)": functools.partial(opencv, name="NS"),
        "biharmonic (scikit-image)": biharmonic,
    }

    def fits(workdir: str) -> bool:
        config = configs.of_run(workdir)
        return (config.image_size, config.channels) == (images.shape[1], images.shape[3])

    for workdir in options.workdir:
        found[Path(workdir).name] = restoring(workdir)
    for workdir in filter(fits, options.search):
        for blend in (False, True):
            name = f"{SEARCH}, {Path(workdir).name}" + ", blended" * blend
            found[name] = searching(workdir, options.steps, options.restarts, blend)
    return found


def measure(name: str, images: np.ndarray, options: argparse.Namespace) -> None:
    """Prints the tables of one set of images, and writes its grid."""
    from aigc_jax.data import masks as kinds
    from aigc_jax.writers import save_png, tile

    seeds = np.stack([np.full(len(images), options.seed), np.arange(len(images))], 1)
    masks = kinds.arrays(options.mask, seeds.astype(np.int32), images.shape[1:3])
    judge, few = Judge(options.judge, images.shape[-1]), options.search_num
    print(f"\n{name}, {options.mask}, seed {options.seed}: {1 - masks.mean():.1%} of it hole\n")
    fills = methods(options, images)
    searched = any(title.startswith(SEARCH) for title in fills)
    counts = sorted({len(images), min(few, len(images)) if searched else len(images)}, reverse=True)
    tables, shown = [[] for _ in counts], {"whole": images, "holed": holed(images, masks)}
    for title, fill in fills.items():
        searches = title.startswith(SEARCH)
        n = counts[-1] if searches else counts[0]
        shown[title], each = filled(fill, images[:n], masks[:n], warm=not searches)
        for count, rows in zip(counts, tables, strict=True):
            if count <= n:
                pair = shown[title][:count], images[:count]
                rows.append((title, count, *quality(*pair, masks[:count]), judge(*pair), each))
    for rows in tables:
        print(harness.table(HEADS, rows) + "\n")
    path = options.out / f"{name}.png"
    save_png(tile(np.stack([x[: options.columns] for x in shown.values()])), path)
    print(f"Rows of {path}: {', '.join(shown)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=("cifar10", "bsd"), default=["cifar10", "bsd"])
    parser.add_argument("--workdir", nargs="*", default=[], help="inpainting runs")
    parser.add_argument("--search", nargs="*", default=[], help="runs of a GAN or a VAE")
    parser.add_argument("--judge", help="a CIFAR-10 classifier's workdir")
    parser.add_argument("--mask", default="strokes")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--num", type=int, default=1000, help="images of each set")
    parser.add_argument("--search_num", type=int, default=200, help="images that are searched for")
    parser.add_argument("--steps", type=int, default=500, help="of the search")
    parser.add_argument("--restarts", type=int, default=4, help="of the search")
    parser.add_argument("--columns", type=int, default=12, help="of the grid")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_inpainting"))
    options = parser.parse_args()
    print(harness.machine("jax", "opencv-python-headless", "scikit-image"))
    for name in options.sets:
        measure(name, {"cifar10": cifar10, "bsd": bsd}[name](options.num), options)


if __name__ == "__main__":
    main()
