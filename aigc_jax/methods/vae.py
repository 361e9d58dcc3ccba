"""Variational autoencoders (Kingma & Welling 2014), the importance weighted (Burda et al. 2016) and
the conditional one (Sohn et al. 2015: the label joins the encoder's input and the decoder's).

Models: `aigc_jax.models.vae_mlp`, `.vae_resnet`. Likelihoods: `aigc_jax.losses.likelihood`.
Configs: `configs/mnist_vae.py`, `mnist_conv_vae.py`, `mnist_cvae.py`,
`cifar10_vae.py`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import models, optim
from aigc_jax.errors import UserError
from aigc_jax.losses import likelihood, variational
from aigc_jax.metrics.image_quality import psnr, ssim
from aigc_jax.parallel import all_examples, axis_size, example_keys, pmean
from aigc_jax.types import Array, Batch, Metrics

ACTIVE = 0.01  # a unit is in use if its posterior mean varies more over images (Burda, sec. 5.2)
_CHUNK = 10  # importance samples that are decoded at once


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32.
      variables: {"encoder": ..., "decoder": ...}, each {"params": ...}.
      opt: the optimizer's state.
      ema: moving average of the variables; None when it is off.
    """

    step: Array
    variables: Any
    opt: Any
    ema: Any


@dataclasses.dataclass(frozen=True)
class VAE:
    """The static half.

    Attributes:
      encoder: module(x, label, train=) -> mean, log_scale (B, latent_dim) of the posterior.
      decoder: module(z, label, train=) -> the likelihood's parameters (B, H, W, outputs).
      likelihood: see `aigc_jax.losses.likelihood`.
      tx: optax transformation.
      num_classes: 0 for unconditional.
      objective: "elbo"; or "iwae", the importance weighted bound of `num_samples`.
      num_samples: latents drawn for each image.
      kl: of the ELBO, "analytic" or "sampled".
      beta: weight of the KL (Higgins et al. 2017).
      warmup_steps: over which beta grows from 0 (Bowman et al. 2016; Sonderby et al. 2016).
      free_bits: nats that each unit pays at least, see `variational.free_bits`.
      nll_samples: importance samples for each image when the likelihood is measured.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    encoder: nn.Module
    decoder: nn.Module
    likelihood: Any
    tx: optax.GradientTransformation
    num_classes: int = 0
    objective: str = "elbo"
    num_samples: int = 1
    kl: str = "analytic"
    beta: float = 1.0
    warmup_steps: int = 0
    free_bits: float = 0.0
    nll_samples: int = 100
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def from_config(config: ConfigDict, axis_name: str | None = None) -> VAE:
    """The static half that a config describes. UserError for values that don't go together."""
    _check(config)
    observed = likelihood.get(config.likelihood, config.channels)
    common = dict(
        image_size=config.image_size,
        latent_dim=config.latent_dim,
        num_classes=config.num_classes,
        outputs=observed.outputs,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
    return VAE(
        encoder=models.build(config.encoder, "Encoder", **common),
        decoder=models.build(config.decoder, "Decoder", **common),
        likelihood=observed,
        tx=optim.optimizer(config.optimizer, config.num_train_steps),
        num_classes=config.num_classes,
        objective=config.objective,
        num_samples=config.num_samples,
        kl=config.kl,
        beta=config.beta,
        warmup_steps=config.kl_warmup_steps,
        free_bits=config.free_bits,
        nll_samples=config.eval.nll_samples,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def _check(config: ConfigDict) -> None:
    for field, known in (("objective", ("elbo", "iwae")), ("kl", ("analytic", "sampled"))):
        if config[field] not in known:
            raise UserError(f"config.{field} is {config[field]!r}: take {' or '.join(known)}.")
    if config.num_samples < 1:
        raise UserError(f"config.num_samples is {config.num_samples}: it must be at least 1.")
    if config.objective == "iwae" and (config.beta, config.kl_warmup_steps, config.free_bits) != (
        1.0,
        0,
        0.0,
    ):
        raise UserError(
            "config.objective = 'iwae' has no KL term of its own: beta = 1, kl_warmup_steps = 0, "
            "free_bits = 0."
        )


def init_state(vae: VAE, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for its shapes: `image` (B, H, W, C), and `label` (B,) if conditional.
    """
    encoder_rng, decoder_rng = jax.random.split(rng)
    image, label = batch["image"][:1], _label(vae, batch, slice(1))
    encoder = vae.encoder.init(encoder_rng, image, label, train=False)
    mean, _ = vae.encoder.apply(encoder, image, label, train=False)
    decoder = vae.decoder.init(decoder_rng, mean, label, train=False)
    variables = {"encoder": encoder, "decoder": decoder}
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt=vae.tx.init(variables),
        ema=jax.tree.map(jnp.copy, variables) if vae.ema_half_life else None,
    )


def train_step(vae: VAE, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update on the negative bound.

    Args:
      batch: `image` (B, H, W, C) in [-1, 1], `label` (B,) int32 if conditional.
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars, nats an image: loss, the ELBO (whatever the objective), its
      reconstruction and KL, the gradient's norm, and how many latent units are in use.
    """
    rng = jax.random.fold_in(rng, state.step)
    keys = example_keys(rng, len(batch["image"]), vae.axis_name)
    image_keys, latent_keys = _two(keys)
    x = vae.likelihood.observe(image_keys, batch["image"])
    label = _label(vae, batch)
    beta = vae.beta * jnp.minimum(1.0, (state.step + 1) / max(vae.warmup_steps, 1))

    def loss_fn(variables: Any) -> tuple[Array, tuple[Metrics, Array]]:
        mean, log_scale = vae.encoder.apply(variables["encoder"], x, label, train=True)
        noise = _noise(latent_keys, vae.num_samples, mean.shape[-1])
        z = mean + jnp.exp(log_scale) * noise
        log_px = _log_px(vae, variables["decoder"], x, z, label, train=True)
        kl = variational.kl_standard_normal(mean, log_scale)
        metrics = {"reconstruction": log_px.mean(), "kl": kl.sum(-1).mean()}
        metrics["elbo"] = metrics["reconstruction"] - metrics["kl"]
        if vae.objective == "iwae":
            loss = -variational.importance_bound(_log_w(log_px, z, noise, log_scale)).mean()
        else:
            if vae.kl == "sampled":
                kl = (0.5 * (z * z - noise * noise) - log_scale).mean(0)
            loss = beta * variational.free_bits(kl, vae.free_bits, vae.axis_name) - log_px.mean()
        return loss, ({"loss": loss} | metrics, mean)

    grads, (metrics, mean) = jax.grad(loss_fn, has_aux=True)(state.variables)
    grads = pmean(grads, vae.axis_name)
    variables, opt = optim.update(vae.tx, grads, state.opt, state.variables)
    metrics = pmean(metrics, vae.axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)
    means = all_examples(mean, vae.axis_name)
    metrics["active_units"] = jnp.sum(means.var(0) > ACTIVE).astype(jnp.float32)
    total = len(batch["image"]) * axis_size(vae.axis_name)
    ema = state.ema
    if vae.ema_half_life:
        seen = state.step.astype(jnp.float32) * total
        ema = optim.ema(ema, variables, seen, total, vae.ema_half_life, vae.ema_ramp_up)
    return state.replace(step=state.step + 1, variables=variables, opt=opt, ema=ema), metrics


def posterior(vae: VAE, state: State, batch: Batch) -> tuple[Array, Array]:
    """Mean and log scale (B, latent_dim) of q(z | image), by the averaged weights."""
    variables = weights(state)["encoder"]
    return vae.encoder.apply(variables, batch["image"], _label(vae, batch), train=False)


def encode(vae: VAE, state: State, batch: Batch) -> Array:
    """The posterior's mean (B, latent_dim) of `image`, given `label` if conditional."""
    return posterior(vae, state, batch)[0]


def decode(vae: VAE, state: State, z: Array, batch: Batch) -> Array:
    """The mean image (B, H, W, C) in [-1, 1] of z (B, latent_dim), given `label`."""
    params = vae.decoder.apply(weights(state)["decoder"], z, _label(vae, batch), train=False)
    return jnp.clip(vae.likelihood.mean(params), -1.0, 1.0)


def latents(vae: VAE, rng: Array, batch: Batch) -> Array:
    """Draws of the prior (B, latent_dim), each settled by `rng` and its example's `index`."""
    keys = _keys_of_index(rng, batch)
    shape = (vae.decoder.latent_dim,)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def sample(
    vae: VAE, state: State, rng: Array, batch: Batch, temperature: float | None = None
) -> Array:
    """Mean images of latents from the prior, one for each example of `batch`.

    Args:
      batch: `index` (B,) int32, which with `rng` settles each image, whatever the batch around it;
        `label` (B,) if conditional, else labels are drawn evenly.
      temperature: the prior's standard deviation; None: 1.

    Returns:
      (B, H, W, C) float32 in [-1, 1].
    """
    if vae.num_classes and "label" not in batch:
        keys = _keys_of_index(jax.random.fold_in(rng, 1), batch)
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, vae.num_classes))
        batch = {**batch, "label": draw(keys)}
    z = latents(vae, rng, batch)
    return decode(vae, state, z if temperature is None else temperature * z, batch)


def weights(state: State) -> Any:
    """The averaged variables: all that using the networks takes."""
    return state.variables if state.ema is None else state.ema


def preview(vae: VAE, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """Grids to watch: samples, a row a class, and training images beside their reconstructions."""
    rows = min(vae.num_classes, 16) or 8
    index = jnp.arange(rows * 8, dtype=jnp.int32)
    samples = sample(vae, state, rng, {"index": index, "label": index // 8})
    decoded = decode(vae, state, encode(vae, state, batch), batch)
    pairs = jnp.stack([batch["image"], decoded], 1)
    pairs = pairs[: len(pairs) // 4 * 4]
    return {
        "samples": samples.reshape(rows, 8, *samples.shape[1:]),
        "reconstructions": pairs.reshape(-1, min(8, 2 * len(pairs)), *samples.shape[1:]),
    }


def diagnose(step: int, metrics: dict[str, float]) -> str | None:
    """A line to warn of a posterior that has collapsed, or None."""
    if step < 500 or metrics["active_units"] >= 2:
        return None
    return (
        "the posterior has collapsed: the latents say nothing of the images. "
        "Try config.kl_warmup_steps, config.free_bits = 0.1 or a smaller config.beta."
    )


def eval_step(
    vae: VAE, state: State, batch: Batch, rng: Array, metrics: tuple[str, ...] = ()
) -> dict[str, tuple]:
    """(sum, count) of what `scores` reads, over the examples where `valid` (B,) is 1.

    Args:
      metrics: those that are wanted, (): all. Without "nll" one sample an image does.
    """
    k = vae.nll_samples if not metrics or "nll" in metrics else 1
    image_keys, latent_keys = _two(_keys_of_index(rng, batch))
    x, label = vae.likelihood.observe(image_keys, batch["image"]), _label(vae, batch)
    variables = weights(state)
    mean, log_scale = vae.encoder.apply(variables["encoder"], x, label, train=False)

    def some(log_sum: Array, i: Array) -> tuple[Array, Array]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(latent_keys, i)
        noise = _noise(keys, chunk, mean.shape[-1])
        z = mean + jnp.exp(log_scale) * noise
        log_px = _log_px(vae, variables["decoder"], x, z, label, train=False)
        log_w = _log_w(log_px, z, noise, log_scale)
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
        found["ssim"] = ssim(decoded, batch["image"])
    valid = batch["valid"]
    return {name: (jnp.einsum("b,b...->...", valid, x), valid.sum()) for name, x in found.items()}


def scores(vae: VAE, means: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
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


def _label(vae: VAE, batch: Batch, part: slice = slice(None)) -> Array | None:
    return batch["label"][part] if vae.num_classes else None


def _keys_of_index(rng: Array, batch: Batch) -> Array:
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(batch["index"])


def _two(keys: Array) -> tuple[Array, Array]:
    """Two keys from each."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _noise(keys: Array, k: int, dim: int) -> Array:
    """(k, B, dim) standard normal, from one key an example."""
    return jax.vmap(lambda key: jax.random.normal(key, (k, dim)), out_axes=1)(keys)


def _log_px(
    vae: VAE, decoder: Any, x: Array, z: Array, label: Array | None, train: bool
) -> Array:
    """log p(x | z) in nats, of x (B, H, W, C) and z (k, B, D): (k, B)."""
    k, n = z.shape[:2]
    label = None if label is None else jnp.tile(label, k)
    params = vae.decoder.apply(decoder, z.reshape(k * n, -1), label, train=train)
    params = params.reshape(k, n, *params.shape[1:])
    return jax.vmap(vae.likelihood.log_prob, (None, 0))(x, params)


def _log_w(log_px: Array, z: Array, noise: Array, log_scale: Array) -> Array:
    """log p(x, z) - log q(z | x), (k, B), for z = mean + exp(log_scale) * noise."""
    # The normalisers of prior and posterior are the same.
    log_ratio = jnp.sum(0.5 * (noise * noise - z * z) + log_scale, -1)
    return log_px + log_ratio
