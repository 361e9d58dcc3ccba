"""A transformer prior over a frozen VQ-VAE's codes (van den Oord et al. 2017; Esser et al. 2021).

The likelihood of each code given a label or a text and the codes before it, by cross-entropy; the
sampled codes are decoded to images. Conditions that are left out at random in training allow
classifier-free guidance (Ho & Salimans 2022).

Model: `aigc_jax.models.code_transformer`, over `aigc_jax.models.vqvae`.
Configs: `configs/cifar10_code_prior.py`, `configs/shapes_text_codes.py`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax import models, optim
from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Condition, for_grid, of_batch, said
from aigc_jax.models import code_transformer, vqvae
from aigc_jax.parallel import axis_size, example_keys, index_keys, pmean, split_keys
from aigc_jax.types import Array, Batch, Metrics


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32.
      variables: {"params": ...} of the transformer.
      opt: the optimizer's state.
      ema: moving average of the variables; None when it is off.
      frozen: {"autoencoder": what `methods.vqvae.weights` returns}.
    """

    step: Array
    variables: Any
    opt: Any
    ema: Any
    frozen: Any


@dataclasses.dataclass(frozen=True)
class CodePrior:
    """The static half.

    Attributes:
      model: module(codes, condition, train=, keys=) -> logits (B, T, K), with `tell`, `step`,
        `logits` and `empty_cache`: see `code_transformer.Transformer`.
      autoencoder: images to codes and back.
      tx: optax transformation.
      num_classes: of labels, 0: they are ignored.
      condition_dropout: how often a condition says nothing in training, for guidance.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    model: nn.Module
    autoencoder: vqvae.Autoencoder
    tx: optax.GradientTransformation
    num_classes: int = 0
    condition_dropout: float = 0.0
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def from_config(config: ConfigDict, axis_name: str | None = None) -> CodePrior:
    """The static half that a config describes. UserError where the autoencoder doesn't fit."""
    # Earlier runs have a field of their own for it.
    left_out = config.get("label_dropout")
    if left_out is None:
        left_out = config.get("conditioning", {}).get("dropout", 0.0)
    _check_share("conditioning.dropout", left_out)
    _check_share("model.dropout", config.model.get("dropout", 0.0))
    first_stage = _first_stage(config)
    autoencoder = vqvae.autoencoder(first_stage)
    model = models.build(
        config.model,
        "Transformer",
        num_codes=first_stage.codebook.size,
        grid=_grid(autoencoder, first_stage),
        num_classes=config.num_classes,
        vocabulary=config.get("vocabulary", 0),
        dtype=jnp.dtype(config.dtype),
    )
    return CodePrior(
        model=model,
        autoencoder=autoencoder,
        tx=optim.optimizer(config.optimizer, config.num_train_steps),
        num_classes=config.num_classes,
        condition_dropout=left_out,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def _check_share(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"config.{field} is {value}: it must be at least 0 and below 1.")


def _first_stage(config: ConfigDict) -> ConfigDict:
    """The config of the autoencoder's run."""
    workdir = config.frozen.get("autoencoder")
    if not workdir:
        raise UserError(
            "A code prior needs a trained VQ-VAE. Name its workdir: "
            "--config.frozen.autoencoder=runs/cifar10_vqvae (aigc train --config=cifar10_vqvae.py)."
        )
    first_stage = configs.of_run(workdir)
    if "codebook" not in first_stage:
        raise UserError(
            f"config.frozen.autoencoder is {workdir}, a run of the method {first_stage.method!r}, "
            "which has no codes: name a run of 'vqvae'."
        )
    for field in ("image_size", "channels"):
        if first_stage[field] != config[field]:
            raise UserError(
                f"config.{field} is {config[field]}, but that of the autoencoder {workdir} is "
                f"{first_stage[field]}: set --config.{field}={first_stage[field]}."
            )
    return first_stage


def _grid(autoencoder: vqvae.Autoencoder, config: ConfigDict) -> tuple[int, int]:
    """(h, w) of the codes of one image."""
    image = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    init = functools.partial(autoencoder.encoder.init_with_output, train=False)
    vectors, _ = jax.eval_shape(init, jax.random.key(0), image)
    return vectors.shape[1:3]


def init_state(prior: CodePrior, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for the shapes of its conditions.
      frozen: {"autoencoder": weights of a VQ-VAE}, see `runs.frozen`.
    """
    codes = jnp.zeros((1, *prior.model.grid), jnp.int32)
    one = jax.tree.map(lambda x: x[:1], of_batch(batch, prior.num_classes))
    variables = prior.model.init(rng, codes, one, train=False)
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt=prior.tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if prior.ema_half_life else None,
        frozen=frozen,
    )


def train_step(prior: CodePrior, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update on the cross-entropy of the codes.

    Args:
      batch: `image` (B, H, W, C) in [-1, 1], and if conditional `label` (B,) int32 or a text's
        fields (see `layers.condition.of_batch`).
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: the loss in nats a code, the same in bits, how often the likeliest
      code is the true one, and the gradient's norm.
    """
    codes = encode(prior, state, batch)
    rng = jax.random.fold_in(rng, state.step)
    told_keys, keys = split_keys(example_keys(rng, len(codes), prior.axis_name))
    condition = _left_out(prior, of_batch(batch, prior.num_classes), told_keys)

    def loss_fn(params: Any) -> tuple[Array, Array]:
        variables = {**state.variables, "params": params}
        logits = prior.model.apply(variables, codes, condition, train=True, keys=keys)
        nats, right = _judge(logits, codes)
        return nats.mean(), right.mean()

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.variables["params"])
    grads = pmean(grads, prior.axis_name)
    params, opt = optim.update(prior.tx, grads, state.opt, state.variables["params"])
    variables = {**state.variables, "params": params}
    metrics = {"loss": loss, "bits_per_code": loss / math.log(2), "accuracy": accuracy}
    metrics = pmean(metrics, prior.axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)
    total = len(codes) * axis_size(prior.axis_name)
    rates = prior.ema_half_life, prior.ema_ramp_up
    ema = optim.averaged(state.ema, variables, state.step, total, *rates)
    return state.replace(step=state.step + 1, variables=variables, opt=opt, ema=ema), metrics


def encode(prior: CodePrior, state: State, batch: Batch) -> Array:
    """The codes (B, h, w) int32 of `image`."""
    return prior.autoencoder.to_codes(state.frozen["autoencoder"], batch["image"])


def decode(prior: CodePrior, state: State, codes: Array, batch: Batch) -> Array:
    """The images (B, H, W, C) in [-1, 1] of codes (B, h, w) int32."""
    return prior.autoencoder.to_images(state.frozen["autoencoder"], codes)


def weights(state: State) -> Any:
    """The averaged variables of the transformer."""
    return state.variables if state.ema is None else state.ema


def sample(
    prior: CodePrior,
    state: State,
    rng: Array,
    batch: Batch,
    temperature: float = 1.0,
    top_k: int = 0,
    guidance: float = 0.0,
) -> Array:
    """Images of codes drawn one after another, from the averaged weights.

    Args:
      batch: `index` (B,) int32, which with `rng` settles each image, whatever the batch around it;
        `label` (B,) if conditional on labels, else they are drawn evenly; or a text's fields.
      temperature: divides the logits; above 0.
      top_k: only the k likeliest codes are drawn; 0: all.
      guidance: w in logits (1 + w) * given the condition - w * given none (Ho & Salimans 2022, eq.
        6, on the logits of each code); 0: none.

    Returns:
      (B, H, W, C) float32 in [-1, 1].

    Raises:
      UserError: a knob out of range; guidance of a prior that was trained with every condition.
    """
    label_keys, code_keys = split_keys(index_keys(rng, batch["index"]))
    condition = of_batch(batch, prior.num_classes)
    if prior.num_classes and condition is None:
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, prior.num_classes))
        condition = draw(label_keys)
    _check_knobs(prior, condition, temperature, top_k, guidance)
    codes = code_transformer.draw(
        prior.model, weights(state), code_keys, condition, temperature, top_k, guidance
    )
    return decode(prior, state, codes, batch)


def _check_knobs(
    prior: CodePrior, condition: Condition, temperature: float, top_k: int, guidance: float
) -> None:
    if temperature <= 0:
        raise UserError(f"temperature is {temperature}: it must be above 0, such as 0.9.")
    if not 0 <= top_k <= prior.model.num_codes:
        raise UserError(
            f"top_k is {top_k}: it must be from 1 to the codebook's {prior.model.num_codes} codes, "
            "or 0 for all."
        )
    if guidance and condition is None:
        raise UserError(f"guidance is {guidance}, but the prior is unconditional: leave it out.")
    if guidance and not prior.condition_dropout:
        raise UserError(
            f"guidance is {guidance}, but the prior was trained with every condition: train one "
            "with --config.conditioning.dropout=0.1."
        )


def preview(prior: CodePrior, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch: {"samples": (rows, columns, H, W, C)}, a row a class, codes by `rng`.

    Of texts a row each, the real image first.
    """
    fields = for_grid(batch, prior.num_classes)
    images = sample(prior, state, rng, fields)
    images = images.reshape(-1, 8, *images.shape[1:])
    if "label" not in fields:
        images = jnp.concatenate([batch["image"][: len(images), None], images], 1)
    return {"samples": images}


def eval_step(prior: CodePrior, state: State, batch: Batch, rng: Array) -> dict[str, tuple]:
    """(sum, count) of each metric over the examples where `valid` (B,) is 1.

    `nats_per_code`; `code_bits_per_dim`, what an image's codes cost over its pixels and channels
    (what the autoencoder loses is not in it); `accuracy` of the likeliest code.
    """
    codes = encode(prior, state, batch)
    logits = prior.model.apply(
        weights(state), codes, of_batch(batch, prior.num_classes), train=False
    )
    nats, right = _judge(logits, codes)
    dims = math.prod(batch["image"].shape[1:])
    found = {
        "nats_per_code": nats.mean(-1),
        "code_bits_per_dim": nats.sum(-1) / (dims * math.log(2)),
        "accuracy": right.mean(-1),
    }
    valid = batch["valid"]
    return {name: ((x * valid).sum(), valid.sum()) for name, x in found.items()}


def _judge(logits: Array, codes: Array) -> tuple[Array, Array]:
    """Nats, and whether the likeliest is right, of each code: (B, T) float32 both."""
    codes = codes.reshape(len(codes), -1)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
    return nats, (logits.argmax(-1) == codes).astype(jnp.float32)


def _left_out(prior: CodePrior, condition: Condition, keys: Array) -> Condition:
    """Conditions of which a share says nothing."""
    if condition is None or not prior.condition_dropout:
        return condition
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - prior.condition_dropout))(keys)
    return said(condition, keep, prior.num_classes)
