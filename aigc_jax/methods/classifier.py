"""A classifier of images: cross-entropy on labels.

Model: `aigc_jax.models.classifier`. Configs: `configs/digits_classifier.py`, `mnist_classifier.py`.
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
from aigc_jax.parallel import axis_size, pmean
from aigc_jax.types import Array, Batch, Metrics

MIXES = True  # its step takes mixed images and the share of each of their labels


class State(struct.PyTreeNode):
    """What training changes; `variables` are the network's, `ema` their moving average."""

    step: Array
    variables: Any
    opt: Any
    ema: Any


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The static half: a module(images, train=) -> (logits, features), and how it is trained."""

    model: nn.Module
    tx: optax.GradientTransformation
    label_smoothing: float = 0.0
    ema_half_life: float = 10_000.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def from_config(config: ConfigDict, axis_name: str | None = None) -> Classifier:
    """The static half that a config describes. UserError where the data has no labels."""
    if config.num_classes < 1:
        raise UserError(
            "A classifier needs labels: set config.task = 'label' and a labelled source."
        )
    model = models.build(
        config.model,
        "Classifier",
        num_classes=config.num_classes,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
    return Classifier(
        model=model,
        tx=optim.optimizer(config.optimizer, config.num_train_steps),
        label_smoothing=config.label_smoothing,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(spec: Classifier, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step; `batch` gives the shape of `image`."""
    variables = spec.model.init(rng, batch["image"][:1], train=False)
    return State(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt=spec.tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if spec.ema_half_life else None,
    )


def train_step(spec: Classifier, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update on `image` (B, H, W, C) in [-1, 1] and `label` (B,) int32; draws nothing.

    Where images are mixed (`augment.mixing`), `share` (B,) of the label is `label`, the rest
    `other_label`.
    """
    label = batch["label"]

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Any]]:
        variables = {**state.variables, "params": params}
        (logits, _), stats = spec.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        target = optax.smooth_labels(_target(batch, logits.shape[-1]), spec.label_smoothing)
        return optax.softmax_cross_entropy(logits, target).mean(), (logits, stats)

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.variables["params"]
    )
    grads = pmean(grads, spec.axis_name)
    params, opt = optim.update(spec.tx, grads, state.opt, state.variables["params"])
    variables = {**state.variables, **stats, "params": params}
    accuracy = jnp.mean(logits.argmax(-1) == label)
    metrics = pmean({"loss": loss, "accuracy": accuracy}, spec.axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)
    total = len(label) * axis_size(spec.axis_name)
    rates = spec.ema_half_life, spec.ema_ramp_up
    ema = optim.averaged(state.ema, variables, state.step, total, *rates)
    return state.replace(step=state.step + 1, variables=variables, opt=opt, ema=ema), metrics


def _target(batch: Batch, num_classes: int) -> Array:
    """(B, num_classes), of sum 1."""
    target = jax.nn.one_hot(batch["label"], num_classes)
    if "share" in batch:
        share = batch["share"][:, None]
        target = share * target + (1 - share) * jax.nn.one_hot(batch["other_label"], num_classes)
    return target


def predict(spec: Classifier, state: State, images: Array) -> tuple[Array, Array]:
    """(logits (B, K), features (B, D)) of images in [-1, 1], by the averaged weights."""
    return spec.model.apply(weights(state), images, train=False)


def weights(state: State) -> Any:
    """The averaged variables, which `predict` reads by and another run may use."""
    return state.variables if state.ema is None else state.ema


def eval_step(spec: Classifier, state: State, batch: Batch, rng: Array) -> dict[str, tuple]:
    """(sum, count) of each metric over the examples where `valid` (B,) is 1."""
    logits, _ = predict(spec, state, batch["image"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
    valid = batch["valid"]
    count = valid.sum()
    return {"accuracy": ((right * valid).sum(), count), "loss": ((loss * valid).sum(), count)}
