"""How near translated images are to the truth, beside what costs nothing: copy, or one colour."""

from collections.abc import Mapping

import jax.numpy as jnp

from aigc_jax.metrics.image_quality import l1, psnr, ssim, ssim_border, within
from aigc_jax.parallel import pmean
from aigc_jax.types import Array

_MOST_DB = 100.0  # an exact copy's PSNR is infinite, which no mean survives
LEVELS = 5


def paired_sums(
    truth: Array, valid: Array, images: Mapping[str, Array]
) -> dict[str, tuple[Array, Array]]:
    """{prefix + metric: (sum, count)} over the valid examples, for an `eval_step`.

    psnr in dB (at most 100), ssim, l1 (mean |difference|, as a share of the range of values) and
    within_5 (the share of pixels less than 5 grey levels off in every channel; Fu et al. 2019,
    section 4.2), in the order of `images`.

    Args:
      truth: (B, H, W, C) in [-1, 1].
      valid: (B,) 1 for an example, 0 for a filler.
      images: {"copied_": ..., "": ...}, what is compared with the truth, by the metrics' prefix.
    """
    count, found = valid.sum(), {}
    for prefix, made in images.items():
        metrics = {
            "psnr": jnp.minimum(psnr(made, truth), _MOST_DB),
            "ssim": ssim(made, truth, border=ssim_border(min(truth.shape[1:3]))),
            "l1": l1(made, truth),
            f"within_{LEVELS}": within(made, truth, LEVELS),
        }
        found |= {f"{prefix}{name}": ((x * valid).sum(), count) for name, x in metrics.items()}
    return found


def running_colour(mean: Array, images: Array, step: Array, axis_name: str | None) -> Array:
    """The mean colour (C,) of all images so far, `step` batches like these having gone before."""
    new = pmean(images.mean((0, 1, 2)), axis_name)
    return mean + (new - mean) / (step.astype(jnp.float32) + 1)


def constant(colour: Array, images: Array) -> Array:
    """Images of one colour (C,), of the shape of `images` (B, H, W, .)."""
    return jnp.broadcast_to(colour.reshape(1, 1, 1, -1), (*images.shape[:3], len(colour)))


def correlation(x: Array, y: Array) -> Array:
    """() Pearson's correlation of the grey values of images and their translations, on average.

    x, y: (B, H, W, C). Below 0, dark became bright, as users of CycleGAN complain.
    """
    x, y = (grey - grey.mean((1, 2), keepdims=True) for grey in (x.mean(-1), y.mean(-1)))
    scale = jnp.sqrt((x**2).sum((1, 2)) * (y**2).sum((1, 2)))
    return jnp.mean((x * y).sum((1, 2)) / jnp.maximum(scale, 1e-8))
