"""Gaussian noise taken off BSD68: PSNR and SSIM of the classical filters and of trained runs.

    AIGC_DATA_DIR=... python benchmarks/denoising.py [--workdir RUN ...] [--sigmas 15 25 50]

Noise is added in floats and not clipped, seeded by (0, image); results are rounded to 8 bits: the
protocol of the literature's table, whose rows stand beside ours. `--picture x.png` shows a crop of
an image by each.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import harness  # isort: skip

# Zhang et al. 2017 (DnCNN), table II; Zhang et al. 2021 (DRUNet), table 2.
PUBLISHED = {
    "BM3D (published)": {15: 31.07, 25: 28.57, 50: 25.62},
    "DnCNN-S (published)": {15: 31.73, 25: 29.23, 50: 26.23},
    "DnCNN-B, blind (published)": {15: 31.61, 25: 29.16, 50: 26.23},
    "DRUNet (published)": {15: 31.91, 25: 29.48, 50: 26.59},
}


def scores(source: str, ops: str, out: Path, **by) -> tuple[float, float, float]:
    """Mean PSNR and SSIM, and of the noisy images."""
    from aigc_jax import restoration

    done = restoration.restore(source, out, ops=ops, **by)
    return tuple(done.scores[name]["value"] for name in ("psnr", "ssim", "input_psnr"))


def crops(source: str, row: int, folders: dict[str, Path], size: int = 128) -> np.ndarray:
    """The middle of an image, and what each folder has of it: (1, N, size, size, 1)."""
    from aigc_jax.data import as_is, pictures

    file = pictures.find(source)[row]
    paths = [file.path, *[(folder / file.name).with_suffix(".png") for folder in folders.values()]]
    images = [as_is.read(path)[0] for path in paths]
    top, left = ((side - size) // 2 for side in images[0].shape[:2])
    return np.stack([x[top : top + size, left : left + size] for x in images])[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", nargs="*", default=[])
    parser.add_argument("--sigmas", nargs="*", type=int, default=[15, 25, 50])
    parser.add_argument("--source", default="folder:bsd/Set68")
    parser.add_argument("--filters", nargs="*", help="of them; default: all")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    from aigc_jax import degrading, filters
    from aigc_jax.writers import save_png, tile

    rows, shown = [], {}
    named = filters.DENOISERS if args.filters is None else args.filters
    by = {name: {"method": name} for name in named}
    by |= {Path(run).name: {"workdir": run} for run in args.workdir}
    with tempfile.TemporaryDirectory() as folder:
        noisy = {}
        for name, how in by.items():
            found = {}
            for sigma in args.sigmas:
                out = Path(folder, name, str(sigma))
                told = how | ({"sigma": sigma} if "method" in how else {})
                *found[sigma], noisy[sigma] = scores(args.source, f"noise({sigma})", out, **told)
                shown[name] = out
            rows.append((name, *(f"{p:.2f} / {s:.3f}" for p, s in found.values())))
            print(rows[-1], flush=True)
        rows.insert(0, ("noisy", *(f"{x:.2f}" for x in noisy.values())))
        for name, found in PUBLISHED.items():
            rows.append((name, *(f"{found[s]:.2f}" if s in found else "" for s in args.sigmas)))
        if args.picture:
            out = Path(folder, "noisy")
            degrading.degrade(args.source, out, f"noise({args.sigmas[-1]})")
            folders = {"noisy": out} | shown
            picture = np.concatenate([crops(args.source, row, folders) for row in (2, 40)])
            save_png(tile(picture), args.picture)
            print("columns:", "clean", *folders)
    print(harness.table(("", *(f"sigma {s}: PSNR / SSIM" for s in args.sigmas)), rows))
    print(harness.machine())


if __name__ == "__main__":
    main()
