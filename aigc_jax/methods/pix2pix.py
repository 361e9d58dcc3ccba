"""pix2pix (Isola et al. 2017): from pairs of images, a to b, with a discriminator that sees both.

Generators: `aigc_jax.models.pix2pix_unet`, `.resnet_translator`. Configs:
`configs/cifar10_pix2pix.py`, `configs/facades_pix2pix.py`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import adversary, domains, optim
from aigc_jax.adversary import Adversary
from aigc_jax.errors import UserError
from aigc_jax.layers.colour import with_luma_of
from aigc_jax.metrics import translation
from aigc_jax.models import multiple as multiple_of
from aigc_jax.parallel import axis_size, example_keys, pmean
from aigc_jax.types import Array, Batch, Metrics

DIRECTIONS = ("a2b",)


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32, updates so far.
      g: the generator's variables.
      g_opt: its optimizer's state.
      adversary: the discriminator's state; None without one.
      ema: moving average of g; None when it is off.
      colour: (C,), the mean colour of the targets seen so far.
      frozen: variables of networks that are used and not trained.
    """

    step: Array
    g: Any
    g_opt: Any
    adversary: Any
    ema: Any
    colour: Array
    frozen: Any


@dataclasses.dataclass(frozen=True)
class Pix2Pix:
    """The static half.

    Attributes:
      generator: module(images, train=, keys=) -> images.
      g_tx: optax transformation.
      adversary: the discriminator of (a, b), its optimizer, the loss and its weight; a perceptual
        term; None: neither, which leaves a regression.
      l1_weight: of |G(a) - b|.
      keep_luma: whether translations have the luma of their sources, so that G makes colours alone
        (as in the published colorization, which predicts ab of Lab).
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    generator: nn.Module
    g_tx: optax.GradientTransformation
    adversary: Adversary | None = None
    l1_weight: float = 100.0
    keep_luma: bool = False
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def defaults() -> ConfigDict:
    """The method's own fields of a config, as published."""
    section = adversary.defaults()
    section.update(loss="non_saturating", weight=1.0, adaptive=False, b2=0.999)
    section.discriminator.update(num_layers=3, norm="batch")
    return ConfigDict(
        {
            "generator": {"name": "pix2pix_unet"},
            "adversary": section,
            "l1_weight": 100.0,
            "keep_luma": False,  # G makes colours alone
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> Pix2Pix:
    """The static half that a config describes. UserError for names that don't exist."""
    if config.eval.direction != "a2b":
        raise UserError(
            "pix2pix translates a to b alone: leave config.eval.direction; config.data.swap "
            "exchanges the two."
        )
    if config.task == "unpaired":
        raise UserError(
            "pix2pix learns from pairs, and config.task is unpaired: take cyclegan or cut, or the "
            "task pairs."
        )
    if config.keep_luma and config.channels != 3:
        raise UserError("config.keep_luma is for colour images: set config.channels to 3.")
    return Pix2Pix(
        generator=domains.generator(config, axis_name),
        g_tx=optim.optimizer(
            config.optimizer,
            config.num_train_steps,
            lr=config.generator.lr,
            b2=config.generator.get("b2"),
        ),
        adversary=adversary.from_config(config, axis_name),
        l1_weight=config.l1_weight,
        keep_luma=config.keep_luma,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(spec: Pix2Pix, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for the shapes of `a` and `b` (B, H, W, C).
      frozen: {"perceptual": variables of a classifier} where the adversary has such a term.
    """
    g_rng, d_rng = jax.random.split(rng)
    a, b = domains.first(batch, "pix2pix")
    g = spec.generator.init(g_rng, a, train=False)
    return State(
        step=jnp.zeros((), jnp.int32),
        g=g,
        g_opt=spec.g_tx.init(g["params"]),
        adversary=adversary.init(spec.adversary, d_rng, b, condition=a),
        ema=jax.tree.map(jnp.copy, g) if spec.ema_half_life else None,
        colour=jnp.zeros(b.shape[-1:]),
        frozen={} if frozen is None else frozen,
    )


def train_step(spec: Pix2Pix, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update of D and then one of G, on the same generated images.

    Args:
      batch: `a` and `b` (B, H, W, C) in [-1, 1], example by example a pair.
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: `l1_loss` (unweighted, in [-1, 1]), `g_grad_norm`, and those of
      `adversary.sharpen` and `adversary.update`.
    """
    a, b = batch["a"], batch["b"]
    keys = example_keys(jax.random.fold_in(rng, state.step), len(a), spec.axis_name)

    def forward(params: Any) -> tuple[Array, Any]:
        variables = {**state.g, "params": params}
        apply = spec.generator.apply
        made, stats = apply(variables, a, train=True, keys=keys, mutable=["batch_stats"])
        return _finished(spec, a, made), stats

    made, pullback, stats = jax.vjp(forward, state.g["params"], has_aux=True)
    l1_loss, gradient = jax.value_and_grad(lambda x: jnp.mean(jnp.abs(x - b)))(made)
    gradient, judge, metrics = _sharpen(spec, state, a, b, made, spec.l1_weight * gradient)
    grads = pmean(pullback(gradient)[0], spec.axis_name)
    params, g_opt = optim.update(spec.g_tx, grads, state.g_opt, state.g["params"])
    g = {**state.g, **stats, "params": params}

    metrics |= {"l1_loss": l1_loss, "g_grad_norm": optax.tree.norm(grads)}
    total = len(a) * axis_size(spec.axis_name)
    rates = spec.ema_half_life, spec.ema_ramp_up
    new = State(
        step=state.step + 1,
        g=g,
        g_opt=g_opt,
        adversary=judge,
        ema=optim.averaged(state.ema, g, state.step, total, *rates),
        colour=translation.running_colour(state.colour, b, state.step, spec.axis_name),
        frozen=state.frozen,
    )
    return new, pmean(metrics, spec.axis_name)


def translate(spec: Pix2Pix, state: State, images: Array, direction: str = "a2b") -> Array:
    """Images of domain a as images of b, by the averaged weights; without dropout.

    Args:
      images: (B, H, W, C) in [-1, 1]; H and W are multiples of `multiple(spec)`.
      direction: "a2b"; UserError for another.

    Returns:
      the same shape, float32 in [-1, 1].
    """
    if direction != "a2b":
        raise UserError(f"pix2pix translates a to b alone, not {direction!r}.")
    made = spec.generator.apply(weights(state), images, train=False)
    return jnp.clip(_finished(spec, images, made), -1, 1)


def multiple(spec: Pix2Pix) -> int:
    """Of which the sizes of images to translate are multiples."""
    return multiple_of(spec.generator)


def sample(spec: Pix2Pix, state: State, rng: Array, batch: Batch) -> Array:
    """The translations of the batch's `a`."""
    return translate(spec, state, batch["a"])


def baselines(spec: Pix2Pix, state: State, batch: Batch) -> dict[str, Array]:
    """What a translation must beat: the image itself, and the targets' mean colour."""
    return {"constant": translation.constant(state.colour, batch["a"]), "copied": batch["a"]}


def eval_step(
    spec: Pix2Pix, state: State, batch: Batch, rng: Array
) -> dict[str, tuple[Array, Array]]:
    """{name: (sum, count)} of the valid examples: `translation.paired_sums`, baselines first."""
    made = sample(spec, state, rng, batch)
    return domains.measured(batch, "b", made, baselines(spec, state, batch))


def preview(spec: Pix2Pix, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch, a row an image: source | translation | truth."""
    a, b = batch["a"][:8], batch["b"][:8]
    return {"a2b": jnp.stack([a, translate(spec, state, a), b], 1)}


def weights(state: State) -> Any:
    """The generator's averaged variables."""
    return state.g if state.ema is None else state.ema


def _finished(spec: Pix2Pix, a: Array, made: Array) -> Array:
    return with_luma_of(made, a) if spec.keep_luma else made


def _sharpen(
    spec: Pix2Pix, state: State, a: Array, b: Array, made: Array, gradient: Array
) -> tuple[Array, Any, Metrics]:
    """The discriminator after its update, and the gradient with what it then adds."""
    if spec.adversary is None:
        return gradient, None, {}
    args = spec.adversary, state.adversary
    judge, theirs = adversary.update(*args, b, made, state.step, condition=a)
    gradient, ours = adversary.sharpen(
        spec.adversary, judge, state.frozen, b, made, gradient, state.step, condition=a
    )
    return gradient, judge, ours | theirs
