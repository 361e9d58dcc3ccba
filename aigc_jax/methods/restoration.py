"""Restoration: from damaged images to whole ones, by regression, and a discriminator where asked.

Without a mask (the task `restore`: noise, blur, JPEG) as DnCNN (Zhang et al. 2017, eq. 1: one
network, one loss in the image); with one (the task `inpaint`) the network fills what the mask
hides, and what is known is kept to the bit (Yu et al. 2019, section 3.4, for the losses).

Networks: `aigc_jax.models.dncnn`, `.unet`, `.lama`. Configs: `configs/bsd_dncnn.py`,
`configs/cifar10_inpaint.py`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import adversary, models, optim
from aigc_jax.adversary import Adversary
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.metrics import translation
from aigc_jax.metrics.image_quality import hole_psnr
from aigc_jax.models import multiple as multiple_of
from aigc_jax.parallel import axis_size, pmean
from aigc_jax.types import Array, Batch, Metrics

_LOSSES = ("l1", "l2")


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32, updates so far.
      model: the network's variables.
      opt: its optimizer's state.
      adversary: the discriminator's state; None without one.
      ema: moving average of `model`; None when it is off.
      frozen: variables of networks that are used and not trained.
    """

    step: Array
    model: Any
    opt: Any
    adversary: Any
    ema: Any
    frozen: Any


@dataclasses.dataclass(frozen=True)
class Restoration:
    """The static half.

    Attributes:
      model: module(images, mask, train=) -> images.
      tx: optax transformation.
      adversary: the discriminator of (condition, image), where the condition is the mask, or the
        damaged image without one; a perceptual term; None: neither.
      loss: "l1" or "l2", of the difference to the truth.
      hole_weight: of the loss where nothing is known, beside 1 elsewhere.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    adversary: Adversary | None = None
    loss: str = "l2"
    hole_weight: float = 1.0
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def defaults() -> ConfigDict:
    """The method's own fields of a config: a regression, as published for DnCNN."""
    return ConfigDict(
        {
            "model": {"name": "dncnn"},
            "loss": "l2",  # l1 | l2
            "hole_weight": 1.0,  # of the loss where the mask hides, beside 1
            "adversary": adversary.defaults(),
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> Restoration:
    """The static half that a config describes. UserError for names that don't exist."""
    if config.loss not in _LOSSES:
        raise UserError(f"Unknown config.loss {config.loss!r}.{did_you_mean(config.loss, _LOSSES)}")
    section = config.adversary
    judged = section.weight and section.adaptive and not section.perceptual_weight
    if config.task == "inpaint" and judged and not config.hole_weight:
        raise UserError(
            "config.hole_weight is 0, and config.adversary.adaptive scales the adversarial "
            "gradient to that of the hole's pixels, which is then 0: set adaptive to False."
        )
    model = models.build(
        config.model,
        "Restorer",
        image_size=config.image_size,
        channels=config.channels,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
    return Restoration(
        model=model,
        tx=optim.optimizer(config.optimizer, config.num_train_steps),
        adversary=adversary.from_config(config, axis_name),
        loss=config.loss,
        hole_weight=config.hole_weight,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(spec: Restoration, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for the shapes of `source` and `target` (B, H, W, C), and of `mask`.
      frozen: {"perceptual": variables of a classifier} where the adversary has such a term.

    Raises:
      UserError: the batch is of another task, or the network takes no such images.
    """
    if not {"source", "target"} <= batch.keys():
        raise UserError(
            f"restoration needs damaged images and their truth, and the batches have "
            f"{', '.join(sorted(batch))}: set config.task to restore or inpaint."
        )
    model_rng, d_rng = jax.random.split(rng)
    source, target, mask = _first(batch)
    model = spec.model.init(model_rng, source, mask, train=False)
    return State(
        step=jnp.zeros((), jnp.int32),
        model=model,
        opt=spec.tx.init(model["params"]),
        adversary=adversary.init(
            spec.adversary, d_rng, target, condition=source if mask is None else mask
        ),
        ema=jax.tree.map(jnp.copy, model) if spec.ema_half_life else None,
        frozen={} if frozen is None else frozen,
    )


def train_step(spec: Restoration, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update of the network, and of the discriminator before it where there is one.

    Args:
      batch: `source` and `target` (B, H, W, C), `target` in [-1, 1]; `mask` (B, H, W, 1), 1 where
        `source` is `target` to be kept, 0 where nothing is known; or no mask.
      rng: the run's root key; the step draws nothing.

    Returns:
      the new state and scalars: `loss` (the pixels'), `psnr` (dB, of the batch's mean square
      error), `grad_norm`, and those of `adversary.sharpen` and `adversary.update`.
    """
    source, target, mask = batch["source"], batch["target"], batch.get("mask")

    def forward(params: Any) -> tuple[Array, Any]:
        variables = {**state.model, "params": params}
        return spec.model.apply(variables, source, mask, train=True, mutable=["batch_stats"])

    made, pullback, stats = jax.vjp(forward, state.model["params"], has_aux=True)
    loss, gradient = jax.value_and_grad(lambda made: _pixels(spec, made, target, mask))(made)
    gradient, judge, metrics = _sharpen(spec, state, source, target, mask, made, gradient)
    grads = pmean(pullback(gradient)[0], spec.axis_name)
    params, opt = optim.update(spec.tx, grads, state.opt, state.model["params"])
    model = {**state.model, **stats, "params": params}

    error = pmean(jnp.mean((_kept(made, source, mask) - target) ** 2), spec.axis_name)
    metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    metrics["psnr"] = 10 * jnp.log10(4 / jnp.maximum(error, 1e-12))
    total = len(source) * axis_size(spec.axis_name)
    rates = spec.ema_half_life, spec.ema_ramp_up
    new = State(
        step=state.step + 1,
        model=model,
        opt=opt,
        adversary=judge,
        ema=optim.averaged(state.ema, model, state.step, total, *rates),
        frozen=state.frozen,
    )
    return new, pmean(metrics, spec.axis_name)


def restore(spec: Restoration, state: State, images: Array, mask: Array | None = None) -> Array:
    """Damaged images made whole, by the averaged weights.

    Args:
      images: (B, H, W, C), in [-1, 1] but for noise; a network that works at multiples of some
        size sees them mirrored at the right and bottom.
      mask: (B, H, W, 1), 1 where `images` is to be kept, 0 where nothing is known; or None.

    Returns:
      (B, H, W, C) float32 in [-1, 1]; where the mask is 1, `images` to the bit.
    """
    if mask is not None:
        images = jnp.where(mask > 0.5, images, 0.0)
    seen, seen_mask = (_padded(x, multiple(spec)) for x in (images, mask))
    made = spec.model.apply(weights(state), seen, seen_mask, train=False)
    height, width = images.shape[1:3]
    return _kept(jnp.clip(made[:, :height, :width], -1, 1), images, mask)


def multiple(spec: Restoration) -> int:
    """Of which the sizes of the images are multiples that the network sees."""
    return multiple_of(spec.model)


def sample(spec: Restoration, state: State, rng: Array, batch: Batch) -> Array:
    """The batch's damaged images made whole."""
    return restore(spec, state, batch["source"], batch.get("mask"))


def baselines(spec: Restoration, state: State, batch: Batch) -> dict[str, Array]:
    """What restoration must beat: the damaged image itself, and the mean colour of what it shows.

    With a mask that colour fills the holes.
    """
    source, mask = batch["source"], batch.get("mask")
    known = jnp.ones_like(source[..., :1]) if mask is None else mask
    count = jnp.maximum(known.sum((1, 2), keepdims=True), 1)
    colour = jnp.broadcast_to((source * known).sum((1, 2), keepdims=True) / count, source.shape)
    return {"constant": _kept(colour, source, mask), "copied": jnp.clip(source, -1, 1)}


def eval_step(
    spec: Restoration, state: State, batch: Batch, rng: Array
) -> dict[str, tuple[Array, Array]]:
    """{name: (sum, count)} of the valid examples: `translation.paired_sums`, baselines first.

    With a mask `hole_psnr` too, in dB, of the unknown pixels alone.
    """
    made = sample(spec, state, rng, batch)
    named = {f"{k}_": x for k, x in baselines(spec, state, batch).items()} | {"": made}
    found = translation.paired_sums(batch["target"], batch["valid"], named)
    for prefix, images in named.items() if "mask" in batch else ():
        inside = hole_psnr(images, batch["target"], batch["mask"]) * batch["valid"]
        found[f"{prefix}hole_psnr"] = inside.sum(), batch["valid"].sum()
    return found


def preview(spec: Restoration, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch, a row an image: damaged | restored | truth."""
    few = {k: batch[k][:8] for k in ("source", "target", "mask") if k in batch}
    made = sample(spec, state, rng, few)
    damaged = jnp.clip(few["source"], -1, 1)
    return {"restored": jnp.stack([damaged, made, few["target"]], 1)}


def weights(state: State) -> Any:
    """The network's averaged variables."""
    return state.model if state.ema is None else state.ema


def _first(batch: Batch) -> tuple[Array, Array, Array | None]:
    mask = batch.get("mask")
    return batch["source"][:1], batch["target"][:1], None if mask is None else mask[:1]


def _padded(x: Array | None, multiple: int) -> Array | None:
    """(B, H, W, C) to the next multiples."""
    if x is None:
        return None
    height, width = x.shape[1:3]
    margins = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
    return jnp.pad(x, margins, "reflect")


def _kept(made: Array, source: Array, mask: Array | None) -> Array:
    return made if mask is None else jnp.where(mask > 0.5, source, made)


def _pixels(spec: Restoration, made: Array, target: Array, mask: Array | None) -> Array:
    """The mean loss of pixels; with a mask those of the hole count `hole_weight`."""
    error = jnp.abs(made - target) if spec.loss == "l1" else (made - target) ** 2
    if mask is not None:
        error = error * (mask + spec.hole_weight * (1 - mask))
    return jnp.mean(error)


def _sharpen(
    spec: Restoration,
    state: State,
    source: Array,
    target: Array,
    mask: Array | None,
    made: Array,
    gradient: Array,
) -> tuple[Array, Any, Metrics]:
    """The discriminator after its update, and the gradient with what it then adds.

    With a mask both judge the whole picture, of which only the hole was made (Yu et al. 2019).
    """
    if spec.adversary is None:
        return gradient, None, {}
    condition = source if mask is None else mask
    hole = 1.0 if mask is None else 1 - mask
    whole, common = _kept(made, source, mask), dict(condition=condition)
    judge, theirs = adversary.update(
        spec.adversary, state.adversary, target, whole, state.step, **common
    )
    ratio_of = gradient * hole
    added, ours = adversary.sharpen(
        spec.adversary, judge, state.frozen, target, whole, ratio_of, state.step, **common
    )
    return gradient + (added - ratio_of) * hole, judge, ours | theirs
