"""PSNR and SSIM of pairs of 8-bit images of any size, and the record that is kept of them."""

import functools
from typing import Any

import jax
import numpy as np

from aigc_jax import parallel
from aigc_jax.metrics.image_quality import psnr, ssim, ssim_border


class Quality:
    """{"psnr": dB, "ssim": ..., "border": as of `ssim`} of each pair, compiled once for each size.

    Args:
      batch_size: fewer pairs are filled up to so many, for one program.
    """

    def __init__(self, batch_size: int = 1) -> None:
        self._batch_size = batch_size
        self._psnr = jax.jit(functools.partial(psnr, data_range=(0, 255)))
        self._ssim = jax.jit(functools.partial(ssim, data_range=(0, 255)), static_argnames="border")

    def __call__(self, x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
        """x, y: (B, H, W, C) uint8, B at most the batch size."""
        border = ssim_border(min(x.shape[1:3]))
        whole = parallel.padded({"x": x, "y": y}, self._batch_size)
        floats = [whole[name].astype(np.float32) for name in "xy"]
        columns = self._psnr(*floats).tolist(), self._ssim(*floats, border=border).tolist()
        scores = zip(*columns, strict=True)
        return [{"psnr": p, "ssim": s, "border": border} for p, s in scores][: len(x)]


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"psnr": ..., "ssim": ..., "images": `found`} of named pairs: the means first.

    JSON has no infinity: an exact copy's PSNR is null, and no part of the mean.
    """
    finite = [score["psnr"] for score in found.values() if np.isfinite(score["psnr"])]
    exact = len(found) - len(finite)
    images = {
        name: {**score, "psnr": score["psnr"] if np.isfinite(score["psnr"]) else None}
        for name, score in found.items()
    }
    borders = sorted({score.pop("border") for score in images.values()})
    mean = float(np.mean(finite)) if finite else None
    mean_ssim = float(np.mean([score["ssim"] for score in found.values()]))
    return {
        "psnr": {"value": mean, "unit": "dB", "n": len(finite), "exact": exact},
        "ssim": {"value": mean_ssim, "n": len(found), "border": " or ".join(borders)},
        "images": images,
    }
