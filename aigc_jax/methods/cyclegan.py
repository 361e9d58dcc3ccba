"""CycleGAN (Zhu et al. 2017): two domains without pairs, translated both ways.

Generators: `aigc_jax.models.resnet_translator`. Discriminators: `aigc_jax.models.patchgan`.
Configs: `configs/{mnistm,horse2zebra,maps}_cyclegan.py`.
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
from aigc_jax.domains import DIRECTIONS
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.methods._cyclegan_pool import init as init_pool
from aigc_jax.methods._cyclegan_pool import query
from aigc_jax.metrics import translation
from aigc_jax.models import multiple as multiple_of
from aigc_jax.parallel import axis_size, interleave, pmean, separate
from aigc_jax.types import Array, Batch, Metrics


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32, updates so far.
      g: {"a2b": variables, "b2a": variables} of the generators.
      d: {"a": adversary.State, "b": ...}, of the discriminator of each domain.
      g_opt: optimizer state of both generators.
      ema: moving average of g; None when it is off.
      pools: {"a": Pool, "b": Pool} of generated images of each domain; None each without pools.
      colours: {"a": (C,), "b": (C,)}, the mean colour of the images seen so far.
    """

    step: Array
    g: Any
    d: Any
    g_opt: Any
    ema: Any
    pools: Any
    colours: Any


@dataclasses.dataclass(frozen=True)
class CycleGAN:
    """The static half.

    Attributes:
      generator: module(images, train=) -> images, without batch norm; one for each direction.
      g_tx: optax transformation of both generators.
      adversary: the discriminator, its optimizer, the loss and its weight; one for each domain.
      cycle_weights: of |A -> B -> A, A| and of |B -> A -> B, B|, L1.
      identity_weight: of |B -> B, B| through A -> B, and the other way, L1.
      pool_size: images that each discriminator's pool holds; 0: none.
      direction: what `sample` and `eval_step` measure: "a2b" or "b2a".
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    generator: nn.Module
    g_tx: optax.GradientTransformation
    adversary: Adversary
    cycle_weights: tuple[float, float] = (10.0, 10.0)
    identity_weight: float = 5.0
    pool_size: int = 50
    direction: str = "a2b"
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def defaults() -> ConfigDict:
    """The method's own fields of a config, as published: 256 pixels, 9 blocks, batches of 1."""
    section = adversary.defaults()
    section.update(loss="least_squares", adaptive=False, b2=0.999)
    section.discriminator.update(num_layers=3, norm="instance")
    # Twice, as the published code's squares lack the factor 1/2 that least_squares has.
    section.weight = 2.0
    return ConfigDict(
        {
            "generator": {"name": "resnet_translator", "blocks": 9},
            "adversary": section,
            "cycle_weights": (10.0, 10.0),  # of A -> B -> A and of B -> A -> B
            # Of the published PyTorch code, where it is 0.5 * 10; of the paper for paintings alone.
            "identity_weight": 5.0,
            "pool_size": 50,
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> CycleGAN:
    """The static half that a config describes. UserError for names that don't exist."""
    judge = adversary.required(config, axis_name, "CycleGAN")
    return CycleGAN(
        generator=domains.generator(config, axis_name),
        g_tx=optim.optimizer(
            config.optimizer,
            config.num_train_steps,
            lr=config.generator.lr,
            b2=config.generator.get("b2"),
        ),
        adversary=judge,
        cycle_weights=tuple(config.cycle_weights),
        identity_weight=config.identity_weight,
        pool_size=config.pool_size,
        direction=config.eval.direction,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(gan: CycleGAN, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for its shapes: `a` and `b` (B, H, W, C).

    Raises:
      UserError: domains of different shape; a generator with batch norm.
    """
    a, b = domains.first(batch, "CycleGAN")
    keys = jax.random.split(rng, 4)
    g = {
        "a2b": gan.generator.init(keys[0], a, train=False),
        "b2a": gan.generator.init(keys[1], b, train=False),
    }
    if set(g["a2b"]) != {"params"}:
        raise UserError(
            "CycleGAN's generators see several batches in one pass, which batch norm would mix: "
            'set config.generator.norm to "instance".'
        )
    return State(
        step=jnp.zeros((), jnp.int32),
        g=g,
        d={
            "a": adversary.init(gan.adversary, keys[2], a),
            "b": adversary.init(gan.adversary, keys[3], b),
        },
        g_opt=gan.g_tx.init(g),
        ema=jax.tree.map(jnp.copy, g) if gan.ema_half_life else None,
        pools={"a": init_pool(gan.pool_size, a[0]), "b": init_pool(gan.pool_size, b[0])},
        colours={"a": jnp.zeros(a.shape[-1:]), "b": jnp.zeros(b.shape[-1:])},
    )


def train_step(gan: CycleGAN, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update of both generators, then one of both discriminators.

    Args:
      batch: `a` and `b` (B, H, W, C) in [-1, 1].
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: `g_loss` (adversarial), `cycle_loss`, `identity_loss` (L1 in
      [-1, 1]), unweighted sums of both directions; `a2b_correlation`, `b2a_correlation` of grey
      values; `g_grad_norm`; and those of `adversary.update`, of each domain: `a_d_loss`, ...
    """
    rng = jax.random.fold_in(rng, state.step)
    real = {"a": batch["a"], "b": batch["b"]}
    grads, (metrics, fake) = jax.grad(_loss, argnums=2, has_aux=True)(gan, state, state.g, real)
    grads = pmean(grads, gan.axis_name)
    g, g_opt = optim.update(gan.g_tx, grads, state.g_opt, state.g)
    metrics = pmean(metrics, gan.axis_name) | {"g_grad_norm": optax.tree.norm(grads)}

    d, pools = {}, {}
    for i, domain in enumerate(real):
        key = jax.random.fold_in(rng, i)
        pools[domain], seen = query(state.pools[domain], fake[domain], key, gan.axis_name)
        d[domain], theirs = adversary.update(
            gan.adversary, state.d[domain], real[domain], seen, state.step
        )
        metrics |= {f"{domain}_{name}": value for name, value in theirs.items()}

    colours = {
        domain: translation.running_colour(
            state.colours[domain], real[domain], state.step, gan.axis_name
        )
        for domain in real
    }
    total = len(real["a"]) * axis_size(gan.axis_name)
    ema = optim.averaged(state.ema, g, state.step, total, gan.ema_half_life, gan.ema_ramp_up)
    step = state.step + 1
    new = State(step=step, g=g, d=d, g_opt=g_opt, ema=ema, pools=pools, colours=colours)
    return new, metrics


def translate(gan: CycleGAN, state: State, images: Array, direction: str = "a2b") -> Array:
    """Images of one domain as images of the other, by the averaged weights.

    Args:
      images: (B, H, W, C) in [-1, 1]; H and W are multiples of `multiple(gan)`.
      direction: "a2b" or "b2a"; UserError for another.

    Returns:
      the same shape, float32 in [-1, 1].
    """
    _check(direction)
    return gan.generator.apply(weights(state)[direction], images, train=False)


def multiple(gan: CycleGAN) -> int:
    """Of which the sizes of images to translate are multiples."""
    return multiple_of(gan.generator)


def sample(gan: CycleGAN, state: State, rng: Array, batch: Batch) -> Array:
    """The translations of the batch's images, `a` or `b`, in the direction that is measured."""
    return translate(gan, state, batch[_source(gan)], gan.direction)


def baselines(gan: CycleGAN, state: State, batch: Batch) -> dict[str, Array]:
    """What a translation must beat: the image itself, and the target domain's mean colour."""
    source, target = DIRECTIONS[gan.direction]
    colour = translation.constant(state.colours[target], batch[source])
    return {"constant": colour, "copied": batch[source]}


def eval_step(
    gan: CycleGAN, state: State, batch: Batch, rng: Array
) -> dict[str, tuple[Array, Array]]:
    """{name: (sum, count)} of the valid examples.

    `cycle_l1`, the mean distance of images from there and back, as a share of the range; and where
    the batch has the truth, the target field, what `translation.paired_sums` tells, of the
    baselines first.
    """
    _check(gan.direction)
    source, target = DIRECTIONS[gan.direction]
    valid, made = batch["valid"], sample(gan, state, rng, batch)
    found = domains.measured(batch, target, made, baselines(gan, state, batch))
    back = translate(gan, state, made, f"{target}2{source}")
    lost = translation.l1(back, batch[source])
    return found | {"cycle_l1": ((lost * valid).sum(), valid.sum())}


def preview(gan: CycleGAN, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """Grids to watch, a row an image: source | translation | and back | source as if a target."""
    return {direction: _tour(gan, state, batch, direction) for direction in DIRECTIONS}


def diagnose(step: int, metrics: dict[str, float]) -> str | None:
    """A line on the first trouble that mean metrics of recent steps show; None: nothing."""
    for direction in DIRECTIONS:
        name = f"{direction}_correlation"
        if step >= 300 and metrics[name] < -0.4:
            return (
                f"{direction} turns dark into bright (grey values correlate by "
                f"{metrics[name]:.2f}). If that is not what the domains differ in, raise "
                "config.identity_weight or lower config.generator.init_gain, and start again."
            )
    return None


def weights(state: State) -> Any:
    """{"a2b": ..., "b2a": ...}: the generators' averaged variables."""
    return state.g if state.ema is None else state.ema


def _source(gan: CycleGAN) -> str:
    _check(gan.direction)
    return DIRECTIONS[gan.direction][0]


def _check(direction: str) -> None:
    if direction not in DIRECTIONS:
        hint = did_you_mean(direction, DIRECTIONS)
        raise UserError(f"A CycleGAN has no direction {direction!r}.{hint}")


def _loss(
    gan: CycleGAN, state: State, g: Any, real: dict[str, Array]
) -> tuple[Array, tuple[Metrics, dict[str, Array]]]:
    """What the generators minimise, its parts, and the generated images of each domain."""

    def through(direction: str, *images: Array) -> list[Array]:
        made = gan.generator.apply(g[direction], interleave(*images), train=True)
        return separate(made, len(images))

    identity = 0.0
    if gan.identity_weight:
        fake_b, same_b = through("a2b", real["a"], real["b"])
        fake_a, same_a = through("b2a", real["b"], real["a"])
        identity = _l1(same_a, real["a"]) + _l1(same_b, real["b"])
    else:
        (fake_b,), (fake_a,) = through("a2b", real["a"]), through("b2a", real["b"])
    (back_a,), (back_b,) = through("b2a", fake_b), through("a2b", fake_a)
    cycles = _l1(back_a, real["a"]), _l1(back_b, real["b"])
    fake = {"a": fake_a, "b": fake_b}
    fooled = sum(adversary.generator_loss(gan.adversary, state.d[k], fake[k]) for k in fake)
    loss = gan.adversary.weight * fooled
    loss = loss + sum(w * x for w, x in zip(gan.cycle_weights, cycles, strict=True))
    loss = loss + gan.identity_weight * identity
    metrics = {
        "g_loss": fooled,
        "cycle_loss": sum(cycles),
        "a2b_correlation": translation.correlation(real["a"], fake_b),
        "b2a_correlation": translation.correlation(real["b"], fake_a),
    }
    if gan.identity_weight:
        metrics["identity_loss"] = identity
    return loss, (metrics, fake)


def _l1(x: Array, y: Array) -> Array:
    return jnp.mean(jnp.abs(x - y))


def _tour(gan: CycleGAN, state: State, batch: Batch, direction: str) -> Array:
    source, target = DIRECTIONS[direction]
    back = f"{target}2{source}"
    images = batch[source][:8]
    there = translate(gan, state, images, direction)
    columns = [
        images,
        there,
        translate(gan, state, there, back),
        translate(gan, state, images, back),
    ]
    return jnp.stack(columns, 1)
