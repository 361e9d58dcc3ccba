"""A trained VAE's use and measuring: codes, images, bounds, likelihood, units in use.

Part of `aigc_jax.methods.vae`, whose `VAE` and `State` the functions take.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.layers.condition import Condition, of_batch
from aigc_jax.losses import variational
from aigc_jax.metrics.image_quality import psnr, ssim, ssim_border
from aigc_jax.parallel import index_keys, split_keys
from aigc_jax.types import Array, Batch

ACTIVE = 0.01  # a unit is in use if its posterior mean varies more over images (Burda, sec. 5.2)
_CHUNK = 10  # importance samples that are decoded at once


def weights(state: Any) -> Any:
    """The averaged variables: all that using the networks takes."""
    return state.variables if state.ema is None else state.ema


def posterior(vae: Any, state: Any, batch: Batch) -> tuple[Array, Array]:
    """Mean and log scale (B, latent_dim) of q(z | image), by the averaged weights."""
    variables = weights(state)["encoder"]
    return vae.encoder.apply(variables, batch["image"], condition_of(vae, batch), train=False)


def encode(vae: Any, state: Any, batch: Batch) -> Array:
    """The posterior's mean (B, latent_dim) of `image`, given the condition if there is one."""
    return posterior(vae, state, batch)[0]


def decode(vae: Any, state: Any, z: Array, batch: Batch) -> Array:
    """The mean image (B, H, W, C) in [-1, 1] of z (B, latent_dim), given the condition."""
    params = vae.decoder.apply(weights(state)["decoder"], z, condition_of(vae, batch), train=False)
    return jnp.clip(vae.likelihood.mean(params), -1.0, 1.0)


def condition_of(vae: Any, batch: Batch, part: slice = slice(None)) -> Condition:
    """The texts or labels of a conditional run's batch, else None."""
    return jax.tree.map(lambda x: x[part], of_batch(batch, vae.num_classes))


def noise_of(keys: Array, k: int, dim: int) -> Array:
    """(k, B, dim) standard normal, from one key an example."""
    return jax.vmap(lambda key: jax.random.normal(key, (k, dim)), out_axes=1)(keys)


def log_likelihood(
    vae: Any, decoder: Any, x: Array, z: Array, condition: Condition, train: bool
) -> Array:
    """log p(x | z) in nats, of x (B, H, W, C) and z (k, B, D): (k, B)."""
    k, n = z.shape[:2]
    condition = jax.tree.map(lambda x: jnp.concatenate([x] * k), condition)
    params = vae.decoder.apply(decoder, z.reshape(k * n, -1), condition, train=train)
    params = params.reshape(k, n, *params.shape[1:])
    return jax.vmap(vae.likelihood.log_prob, (None, 0))(x, params)


def log_weights(log_px: Array, z: Array, noise: Array, log_scale: Array) -> Array:
    """log p(x, z) - log q(z | x), (k, B), for z = mean + exp(log_scale) * noise."""
    # The normalisers of prior and posterior are the same.
    log_ratio = jnp.sum(0.5 * (noise * noise - z * z) + log_scale[None], -1)
    return log_px + log_ratio


def eval_step(
    vae: Any, state: Any, batch: Batch, rng: Array, metrics: tuple[str, ...] = ()
) -> dict[str, tuple]:
    """(sum, count) of what `scores` reads, over the examples where `valid` (B,) is 1.

    Args:
      metrics: those that are wanted, (): all. Without "nll" one sample an image does.
    """
    k = vae.nll_samples if not metrics or "nll" in metrics else 1
    image_keys, latent_keys = split_keys(index_keys(rng, batch["index"]))
    x, condition = vae.likelihood.observe(image_keys, batch["image"]), condition_of(vae, batch)
    variables = weights(state)
    mean, log_scale = vae.encoder.apply(variables["encoder"], x, condition, train=False)

    def some(log_sum: Array, i: Array) -> tuple[Array, Array]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(latent_keys, i)
        noise = noise_of(keys, chunk, mean.shape[-1])
        z = mean[None] + jnp.exp(log_scale)[None] * noise
        log_px = log_likelihood(vae, variables["decoder"], x, z, condition, train=False)
        log_w = log_weights(log_px, z, noise, log_scale)
        log_sum = jnp.logaddexp(log_sum, jax.nn.logsumexp(log_w, 0))
        return log_sum, log_px.mean(0)

    chunk = max(n for n in range(1, _CHUNK + 1) if k % n == 0)
    start = jnp.full(len(x), -jnp.inf)
    log_sum, log_px = jax.lax.scan(some, start, jnp.arange(k // chunk))
    kl = variational.kl_standard_normal(mean, log_scale).sum(-1)
    found = {
        "elbo": log_px.mean(0) - kl,
        "kl": kl,
        "mean": mean,
        "square": mean * mean,
    }
    if not metrics or "nll" in metrics:
        found["nll"] = math.log(k) - log_sum
    if not metrics or {"psnr", "ssim"} & set(metrics):
        decoded = decode(vae, state, encode(vae, state, batch), batch)
        found["psnr"] = psnr(decoded, batch["image"])
        found["ssim"] = ssim(decoded, batch["image"], border=ssim_border(batch["image"].shape[1]))
    valid = batch["valid"]
    return {name: (jnp.einsum("b,b...->...", valid, x), valid.sum()) for name, x in found.items()}


def scores(vae: Any, means: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Records of a test set from its means: bounds in the likelihood's unit, see `likelihood`."""
    size = vae.decoder.image_size**2 * vae.likelihood.channels
    unit = vae.likelihood.unit
    scale = 1.0 if unit == "nats" else 1 / (size * math.log(2))
    variance = means["square"] - means["mean"] ** 2
    found = {
        "elbo": {"value": float(means["elbo"] * scale), "unit": unit},
        "kl": {"value": float(means["kl"]), "unit": "nats"},
        "active_units": {"value": int((variance > ACTIVE).sum()), "of": len(variance)},
    }
    if "nll" in means:
        found["nll"] = {"value": float(means["nll"] * scale), "k": vae.nll_samples, "unit": unit}
    return found | {k: {"value": float(means[k])} for k in ("psnr", "ssim") if k in means}
