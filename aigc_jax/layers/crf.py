"""Conditional random fields: over labels, and over the values of images."""

from aigc_jax.layers.gaussian_crf import GaussianCRF
from aigc_jax.layers.mean_field import MeanFieldCRF

__all__ = ["GaussianCRF", "MeanFieldCRF"]
