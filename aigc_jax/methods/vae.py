"""Variational autoencoders (Kingma & Welling 2014), the importance weighted (Burda et al. 2016) and
the conditional one (Sohn et al. 2015), on labels or texts, which both networks are told.

Models: `aigc_jax.models.vae_mlp`, `.vae_resnet`, `.fusion_vae`. Likelihoods:
`aigc_jax.losses.likelihood`.
Configs: `configs/mnist_vae.py`, `mnist_conv_vae.py`, `mnist_cvae.py`, `digits_cvae.py`,
`cifar10_vae.py`, `shapes_text_vae.py`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import models, optim
from aigc_jax.errors import UserError
from aigc_jax.layers.condition import for_grid, said
from aigc_jax.losses import likelihood, variational
from aigc_jax.methods._vae_use import (
    ACTIVE,
    condition_of,
    decode,
    encode,
    eval_step,
    log_likelihood,
    log_weights,
    noise_of,
    posterior,
    scores,
    weights,
)
from aigc_jax.models import condition_encoder
from aigc_jax.parallel import (
    all_examples,
    axis_size,
    example_keys,
    index_keys,
    pmean,
    split_keys,
)
from aigc_jax.types import Array, Batch, Metrics

__all__ = [
    "VAE",
    "State",
    "decode",
    "defaults",
    "diagnose",
    "encode",
    "eval_step",
    "from_config",
    "init_state",
    "latents",
    "posterior",
    "preview",
    "sample",
    "scores",
    "train_step",
    "weights",
]


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
      encoder: module(x, condition, train=) -> mean, log_scale (B, latent_dim) of the posterior.
      decoder: module(z, condition, train=) -> the likelihood's parameters (B, H, W, outputs), with
        the fields `latent_dim` and `image_size`.
      likelihood: see `aigc_jax.losses.likelihood`.
      tx: optax transformation.
      num_classes: 0 for unconditional.
      objective: "elbo"; or "iwae", the importance weighted bound of `num_samples`.
      num_samples: latents drawn for each image.
      kl: of the ELBO, "analytic" or "sampled".
      beta: weight of the KL (Higgins et al. 2017).
      warmup_steps: over which beta grows from 0 (Bowman et al. 2016; Sonderby et al. 2016).
      free_bits: nats that each unit pays at least, see `variational.free_bits`.
      dropout: share of the conditions that say nothing, so that `guidance` has what it goes from.
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
    dropout: float = 0.0
    nll_samples: int = 100
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def defaults() -> ConfigDict:
    """The fields of a config that say what is maximised: the plain ELBO, unless set otherwise."""
    return ConfigDict(
        {
            "objective": "elbo",  # elbo | iwae, the importance weighted bound of num_samples
            "num_samples": 1,  # latents for each image
            "kl": "analytic",  # analytic | sampled
            "beta": 1.0,  # weight of the KL
            "kl_warmup_steps": 0,  # over which it grows from 0
            "free_bits": 0.0,  # nats that each latent unit pays at least
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> VAE:
    """The static half that a config describes. UserError for values that don't go together."""
    _check(config)
    observed = likelihood.get(config.likelihood, config.channels)
    common = dict(
        image_size=config.image_size,
        latent_dim=config.latent_dim,
        num_classes=config.num_classes,
        vocabulary=config.get("vocabulary", 0),
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
        dropout=config.get("conditioning", {}).get("dropout", 0.0),
        nll_samples=config.eval.nll_samples,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def _check(config: ConfigDict) -> None:
    for field, known in (("objective", ("elbo", "iwae")), ("kl", ("analytic", "sampled"))):
        if config[field] not in known:
            raise UserError(f"config.{field} is {config[field]!r}: take {' or '.join(known)}.")
    for field in ("num_samples", "latent_dim"):
        if config[field] < 1:
            raise UserError(f"config.{field} is {config[field]}: it must be at least 1.")
    for field in ("beta", "kl_warmup_steps", "free_bits"):
        if config[field] < 0:
            raise UserError(f"config.{field} is {config[field]}: it must be at least 0.")
        plain = 1 if field == "beta" else 0
        if config.objective == "iwae" and config[field] != plain:
            raise UserError(
                f"config.{field} is {config[field]}, but the bound of config.objective = 'iwae' "
                f"has no KL term to weigh: set --config.{field}={plain}."
            )


def init_state(vae: VAE, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for its shapes: `image` (B, H, W, C), and `label` (B,) or a text's fields
        (see `layers.condition.of_batch`) if conditional.
    """
    encoder_rng, decoder_rng = jax.random.split(rng)
    image, condition = batch["image"][:1], condition_of(vae, batch, slice(1))
    encoder = vae.encoder.init(encoder_rng, image, condition, train=False)
    mean, _ = vae.encoder.apply(encoder, image, condition, train=False)
    decoder = vae.decoder.init(decoder_rng, mean, condition, train=False)
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
      batch: `image` (B, H, W, C) in [-1, 1], `label` (B,) int32 or a text's fields if conditional.
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars, nats an image: loss, the ELBO (whatever the objective), its
      reconstruction and KL, the gradient's norm, and how many latent units are in use.
    """
    rng = jax.random.fold_in(rng, state.step)
    keys = example_keys(rng, len(batch["image"]), vae.axis_name)
    image_keys, latent_keys = split_keys(keys)
    x = vae.likelihood.observe(image_keys, batch["image"])
    condition = condition_of(vae, batch)
    if vae.dropout:
        told = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)
        told = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - vae.dropout))(told)
        condition = said(condition, told, vae.num_classes)
    beta = vae.beta * jnp.minimum(1.0, (state.step + 1) / max(vae.warmup_steps, 1))

    def loss_fn(variables: Any) -> tuple[Array, tuple[Metrics, Array]]:
        mean, log_scale = vae.encoder.apply(variables["encoder"], x, condition, train=True)
        noise = noise_of(latent_keys, vae.num_samples, mean.shape[-1])
        z = mean[None] + jnp.exp(log_scale)[None] * noise
        log_px = log_likelihood(vae, variables["decoder"], x, z, condition, train=True)
        kl = variational.kl_standard_normal(mean, log_scale)
        metrics = {"reconstruction": log_px.mean(), "kl": kl.sum(-1).mean()}
        metrics["elbo"] = metrics["reconstruction"] - metrics["kl"]
        if vae.objective == "iwae":
            loss = -variational.importance_bound(log_weights(log_px, z, noise, log_scale)).mean()
        else:
            if vae.kl == "sampled":
                kl = (0.5 * (z * z - noise * noise) - log_scale[None]).mean(0)
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
    rates = vae.ema_half_life, vae.ema_ramp_up
    ema = optim.averaged(state.ema, variables, state.step, total, *rates)
    return state.replace(step=state.step + 1, variables=variables, opt=opt, ema=ema), metrics


def latents(vae: VAE, rng: Array, batch: Batch) -> Array:
    """Draws of the prior (B, latent_dim), each settled by `rng` and its example's `index`."""
    keys = index_keys(rng, batch["index"])
    shape = (vae.decoder.latent_dim,)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def sample(
    vae: VAE,
    state: State,
    rng: Array,
    batch: Batch,
    temperature: float | None = None,
    guidance: float | None = None,
) -> Array:
    """Mean images of latents from the prior, one for each example of `batch`.

    Args:
      batch: `index` (B,) int32, which with `rng` settles each image, whatever the batch around it;
        `label` (B,) if conditional on labels, else they are drawn evenly; or a text's fields.
      temperature: the prior's standard deviation; None: 1.
      guidance: how far beyond its condition an image goes, away from the empty one (see
        `models.condition_encoder`); None: 0, as trained.

    Returns:
      (B, H, W, C) float32 in [-1, 1].
    """
    if vae.num_classes and "label" not in batch:
        keys = index_keys(jax.random.fold_in(rng, 1), batch["index"])
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, vae.num_classes))
        batch = {**batch, "label": draw(keys)}
    if guidance:
        vae = dataclasses.replace(vae, decoder=condition_encoder.guided(vae.decoder, guidance))
        condition_encoder.check_guidance(vae.dropout)
    z = latents(vae, rng, batch)
    return decode(vae, state, z if temperature is None else temperature * z, batch)


def preview(vae: VAE, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """Grids to watch: samples, a row a class, and training images beside their reconstructions."""
    samples = sample(vae, state, rng, for_grid(batch, vae.num_classes))
    decoded = decode(vae, state, encode(vae, state, batch), batch)
    columns = min(4, len(decoded))
    pairs = jnp.stack([batch["image"], decoded], 1)[: len(decoded) // columns * columns]
    return {
        "samples": samples.reshape(-1, 8, *samples.shape[1:]),
        "reconstructions": pairs.reshape(-1, 2 * columns, *samples.shape[1:]),
    }


def diagnose(step: int, metrics: dict[str, float]) -> str | None:
    """A line to warn of a posterior that has collapsed, or None."""
    if step < 500 or metrics["active_units"] >= 1:
        return None
    return (
        "the posterior has collapsed: the latents say nothing of the images. "
        "Try config.kl_warmup_steps, config.free_bits = 0.1 or a smaller config.beta, by the elbo."
    )
