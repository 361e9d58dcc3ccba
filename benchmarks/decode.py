"""Images a second from PNGs: decoding alone, and with each resize to 299x299 on the host.

Beside them what the Inception of FID consumes on the same cores, with random weights and images
that are resized already: the side that is slower sets the pace. Pictures are synthetic, with the
1/f spectrum of photographs, which fixes how well they compress.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import harness
import numpy as np
from PIL import Image


def picture(size: int, seed: int) -> np.ndarray:
    """(size, size, 3) uint8: brightness and, fainter, colour, both with amplitudes of 1/f."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * size
    spectra = np.fft.rfft2(rng.standard_normal((4, size, size))) / np.maximum(frequency, 1)
    planes = np.fft.irfft2(spectra, (size, size))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    pixels = 128 + 50 * planes[0] + 15 * planes[1:]
    return np.clip(pixels, 0, 255).round().astype(np.uint8).transpose(1, 2, 0)


def folder(root: str, size: int, count: int) -> str:
    place = Path(root, str(size))
    place.mkdir()
    for i in range(count):
        Image.fromarray(picture(size, i)).save(place / f"{i:05}.png")
    return str(place)


def reading(path: str, resize: str | None, threads: int):
    """A step is one image of the folder, read again and again."""
    from aigc_jax.data.images import open_images
    from aigc_jax.metrics.resize import HOST

    images = open_images(path)

    def run(steps: int) -> list[float]:
        def read_all() -> None:
            for _ in images.read(HOST[resize] if resize else None, threads):
                pass

        passes = max(1, steps // images.n)
        return [t / images.n for t in harness.timer(read_all, lambda: None)(passes)]

    return run, {}


def network(batch: int):
    """A step is one batch through Inception."""
    import jax

    from aigc_jax.metrics import inception
    from aigc_jax.metrics.inception_weights import SHAPES

    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)

    variables = inception.variables({name: draw(shape) for name, shape in SHAPES.items()})
    variables = jax.device_put(variables)
    images = jax.device_put(rng.uniform(-1, 1, (batch, 299, 299, 3)).astype(np.float32))
    apply = jax.jit(inception.apply)
    jax.block_until_ready(apply(variables, images))
    return harness.timer(lambda: jax.block_until_ready(apply(variables, images)), lambda: None), {}


def rates(make, *args, steps: int, per_step: int = 1, threaded: bool = True) -> list[float]:
    """Images a second on one core and on two."""
    found = []
    for threads in (1, 2):
        places = (*args, threads) if threaded else args
        worker = harness.Worker(make, *places, threads=threads)
        worker.times(steps)  # the first round is dropped
        found.append(per_step * 1e3 / statistics.median(worker.times(steps)))
        worker.stop()
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 256, 1024])
    parser.add_argument("--megapixels", type=float, default=16, help="of each folder, at most")
    parser.add_argument("--batch", type=int, default=32, help="of Inception")
    return parser.parse_args()


def main() -> None:
    from aigc_jax.metrics.protocols import PROTOCOLS

    options = parse_arguments()
    resizes = {p.resize: [q.name for q in PROTOCOLS.values() if q.resize == p.resize]
               for p in PROTOCOLS.values()}  # fmt: skip
    pace = rates(network, options.batch, steps=2, per_step=options.batch, threaded=False)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for size in options.sizes:
            count = max(8, min(400, int(options.megapixels * 1e6 / size**2)))
            path = folder(root, size, count)
            for resize in (None, *resizes):
                found = rates(reading, path, resize, steps=3 * count)
                work = f"and {resize} ({', '.join(resizes[resize])})" if resize else "decode"
                rows.append((f"{size}x{size}", work, *found, found[1] / pace[1]))
    rows.append(("", f"Inception, batch {options.batch}", *pace, 1.0))
    print(f"{harness.machine('pillow', 'numpy', 'jax')}\n")
    print(harness.table(("PNG", "work", "1 core", "2 cores", "/ Inception"), rows))


if __name__ == "__main__":
    main()
