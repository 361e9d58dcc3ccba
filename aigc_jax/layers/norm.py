"""Batch and instance normalisation."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Dense
from aigc_jax.types import Array

Initializer = jax.nn.initializers.Initializer


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), with the arithmetic of PyTorch's BatchNorm2d.

    x: (B, ..., C), float; returns the same shape in `dtype` (None: the common dtype of x and the
    parameters). Parameters `scale`, `bias` (C,); collection `batch_stats` with `mean`, `var` (C,).
    Statistics are float32; `momentum * running + (1 - momentum) * batch` updates the running ones,
    the variance from the batch's unbiased one. They carry no gradient. With `axis_name`, the batch
    is that of all devices on that axis of pmap, except while initialising.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones_init()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool,
        groups: int = 1,
        affine: tuple[Array, Array] | None = None,
    ) -> Array:
        """Normalise x by its batch (train, which updates `batch_stats`) or by what has run.

        With groups g, example i belongs to sub-batch i % g and each sub-batch is normalised by its
        own statistics, as if it went through alone; the running ones take the mean over groups.
        `affine` are scales and biases (B, C) of each example, which multiply and add to those of
        the layer, if it has any. Raises UserError if groups does not divide B.
        """
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        view = _grouped(x, groups if train else 1)
        if train:
            axis_name = None if self.is_initializing() else self.axis_name
            batch_mean, batch_var = _moments(view, axis_name)
            if not self.is_initializing():
                count = _count(view, axis_name)
                unbiased = batch_var.mean(0) * (count / max(count - 1, 1))
                self._update(mean, batch_mean.mean(0))
                self._update(var, unbiased)
        else:
            batch_mean, batch_var = mean.value[None], var.value[None]
        y = _normalise(view, batch_mean, batch_var, self.epsilon, scale, bias, affine)
        return y.reshape(x.shape).astype(dtype)

    def _update(self, running: nn.Variable, batch: Array) -> None:
        new = self.momentum * running.value + (1 - self.momentum) * batch
        running.value = lax.stop_gradient(new)


def _grouped(x: Array, groups: int) -> Array:
    """(B, ..., C) -> (B / groups, groups, pixels, C)."""
    if x.shape[0] % groups:
        raise UserError(
            f"BatchNorm: {groups} groups do not divide a batch of {x.shape[0]}; "
            f"use a batch size that is a multiple of {groups}."
        )
    return x.reshape(x.shape[0] // groups, groups, -1, x.shape[-1])


def _normalise(
    x: Array,
    mean: Array,
    var: Array,
    epsilon: float,
    scale: Array | None,
    bias: Array | None,
    affine: tuple[Array, Array] | None = None,
) -> Array:
    """x (N, G, P, C), mean, var (G, C), scale, bias (C,), affine (N G, C) each, float32 out."""
    factor = lax.rsqrt(var + epsilon)
    factor = factor if scale is None else factor * scale.reshape(1, -1)
    shift = -mean * factor
    shift = shift if bias is None else shift + bias.reshape(1, -1)
    # Not (x - mean) * factor: its gradient would keep x - mean, another array of the size of x.
    if affine is not None:
        own = [a.astype(jnp.float32).reshape(*x.shape[:2], -1) for a in affine]
        factor, shift = factor[None] * own[0], shift[None] * own[0] + own[1]
        factor, shift = (jnp.broadcast_to(a[:, :, None], x.shape) for a in (factor, shift))
        return x.astype(jnp.float32) * factor + shift
    return x.astype(jnp.float32) * _spread(factor, x.shape) + _spread(shift, x.shape)


def _spread(v: Array, shape: tuple[int, ...]) -> Array:
    """v (G, C) -> `shape`, (N, G, P, C).

    In two steps, so that its derivative sums in two: XLA on CPU is ten times as fast at those.
    """
    v = jnp.broadcast_to(v[None], (shape[0], *v.shape))
    return jnp.broadcast_to(v[:, :, None], shape)


def _moments(x: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Mean and biased variance (G, C), float32, of x (N, G, P, C) over N, P and the devices."""
    wide = x.astype(jnp.float32)
    sums = _sum(wide), _sum(wide * wide)
    if axis_name is not None:
        sums = lax.psum(sums, axis_name)
    count = _count(x, axis_name)
    mean, square = sums[0] / count, sums[1] / count
    return mean, jnp.maximum(square - mean * mean, 0)


def _sum(x: Array) -> Array:
    """(N, G, P, C) -> (G, C). In two steps, the first of which XLA on CPU runs in parallel."""
    return x.sum(2).sum(0)


def _count(x: Array, axis_name: str | None) -> int:
    """How many pixels of x (N, G, P, C) share their statistics."""
    return x.shape[0] * x.shape[2] * (1 if axis_name is None else lax.psum(1, axis_name))


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with scales and biases of the condition (de Vries et al. 2017).

    BN(x) * (1 + G c) + B c, with linear layers `gain` G and `bias` B without biases: as in BigGAN
    (Brock et al. 2019, appendix B). Without the 1, as some ports have it, signals start near zero.

    Attributes:
      kernel_init, reparam: of both linear layers.
      axis_name: see `BatchNorm`.
      dtype: of the result.
    """

    kernel_init: Initializer = nn.initializers.orthogonal()
    reparam: Any = None
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, vector: Array, *, train: bool) -> Array:
        """x (B, ..., C), vector (B, W), float -> as x."""
        linear = partial(
            Dense, x.shape[-1], False, kernel_init=self.kernel_init, reparam=self.reparam
        )
        gain, bias = linear(name="gain")(vector), linear(name="bias")(vector)
        norm = BatchNorm(
            axis_name=self.axis_name, use_scale=False, use_bias=False, dtype=self.dtype
        )
        return norm(x, train=train, affine=(1 + gain, bias))


class InstanceNorm(nn.Module):
    """Instance normalisation (Ulyanov et al. 2016), with the arithmetic of PyTorch's.

    Every channel of every image is normalised by its own mean and biased variance over pixels, in
    training and evaluation alike. x: (B, ..., C), float; returns the same shape in `dtype` (None:
    the common dtype of x and the parameters). Parameters `scale`, `bias` (C,) where used.
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones_init()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise x."""
        shape = (x.shape[-1],)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        view = _grouped(x, x.shape[0])
        y = _normalise(view, *_moments(view, None), self.epsilon, scale, bias)
        return y.reshape(x.shape).astype(dtype)
