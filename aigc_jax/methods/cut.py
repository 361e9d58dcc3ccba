"""Contrastive unpaired translation (Park et al. 2020): CUT and FastCUT, one way, no cycle.

Each patch of a translation must be closer to the patch of the source at its place than to others,
in the features of the generator's own encoder. Generators: `aigc_jax.models.resnet_translator`.
Configs: `configs/mnistm_cut.py`, `configs/horse2zebra_cut.py`.
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
from aigc_jax.losses.contrastive import patch_nce
from aigc_jax.metrics import translation
from aigc_jax.models import multiple as multiple_of
from aigc_jax.models.patch_head import PatchHead, draw_places
from aigc_jax.parallel import axis_size, interleave, pmean
from aigc_jax.types import Array, Batch, Metrics

DIRECTIONS = ("a2b",)


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32, updates so far.
      g: the generator's variables.
      head: the projection's variables.
      g_opt, head_opt: their optimizers' states.
      adversary: the discriminator's state.
      ema: moving average of g; None when it is off.
      colour: (C,), the mean colour of the targets seen so far.
    """

    step: Array
    g: Any
    head: Any
    g_opt: Any
    head_opt: Any
    adversary: Any
    ema: Any
    colour: Array


@dataclasses.dataclass(frozen=True)
class CUT:
    """The static half.

    Attributes:
      generator: module(images, train=) -> images, with methods `encode` and `with_features`;
        without batch norm.
      head: module(maps, places) -> vectors.
      g_tx, head_tx: optax transformations.
      adversary: the discriminator, its optimizer, the loss and its weight.
      nce_weight: of the PatchNCE loss.
      identity: whether targets translate to themselves too, at half the PatchNCE weight each.
      flip: whether the network is to commute with mirroring (FastCUT).
      patches: of each map.
      temperature: of PatchNCE.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    generator: nn.Module
    head: nn.Module
    g_tx: optax.GradientTransformation
    head_tx: optax.GradientTransformation
    adversary: Adversary
    nce_weight: float = 1.0
    identity: bool = True
    flip: bool = False
    patches: int = 256
    temperature: float = 0.07
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def defaults() -> ConfigDict:
    """The method's own fields of a config: CUT as published. FastCUT differs as each line says."""
    section = adversary.defaults()
    section.update(loss="least_squares", adaptive=False, b2=0.999)
    section.discriminator.update(num_layers=3, norm="instance", antialias=True, init_gain=0.0)
    # Twice, as the published code's squares lack the factor 1/2 that least_squares has.
    section.weight = 2.0
    return ConfigDict(
        {
            "generator": {
                "name": "resnet_translator",
                "blocks": 9,
                "resample": "blur",
                "init_gain": 0.0,
            },
            "adversary": section,
            "nce_weight": 1.0,  # FastCUT: 10
            "identity": True,  # FastCUT: False
            "flip_equivariance": False,  # FastCUT: True
            "patches": 256,  # of each map
            "head_features": 256,  # of the vectors that are compared
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> CUT:
    """The static half that a config describes. UserError for names that don't exist."""
    if config.eval.direction != "a2b":
        raise UserError(
            "CUT translates a to b alone: leave config.eval.direction, and exchange config.data.a "
            "and data.b."
        )
    judge = adversary.required(config, axis_name, "CUT")
    generator = domains.generator(config, axis_name)
    if not hasattr(generator, "with_features"):
        raise UserError(
            f"CUT looks into its generator, and {config.generator.name!r} doesn't let it: take "
            "resnet_translator, without a crf."
        )
    return CUT(
        generator=generator,
        head=PatchHead(config.head_features, dtype=jnp.dtype(config.dtype)),
        g_tx=optim.optimizer(
            config.optimizer,
            config.num_train_steps,
            lr=config.generator.lr,
            b2=config.generator.get("b2"),
        ),
        head_tx=optim.optimizer(config.optimizer, config.num_train_steps),
        adversary=judge,
        nce_weight=config.nce_weight,
        identity=config.identity,
        flip=config.flip_equivariance,
        patches=config.patches,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(cut: CUT, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step; `batch` gives the shapes of `a` and `b` (B, H, W, C)."""
    g_rng, head_rng, d_rng = jax.random.split(rng, 3)
    a, b = domains.first(batch, "CUT")
    g = cut.generator.init(g_rng, a, train=False)
    maps = cut.generator.apply(g, a, method="encode")
    head = cut.head.init(head_rng, maps, draw_places(head_rng, maps, cut.patches))
    return State(
        step=jnp.zeros((), jnp.int32),
        g=g,
        head=head,
        g_opt=cut.g_tx.init(g),
        head_opt=cut.head_tx.init(head),
        adversary=adversary.init(cut.adversary, d_rng, b),
        ema=jax.tree.map(jnp.copy, g) if cut.ema_half_life else None,
        colour=jnp.zeros(b.shape[-1:]),
    )


def train_step(cut: CUT, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """One update of D, then one of G and of the projection.

    Args:
      batch: `a` and `b` (B, H, W, C) in [-1, 1].
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: `g_loss` (adversarial, unweighted), `nce_loss` (a to b) and
      `identity_nce_loss`, unweighted; `a2b_correlation` of grey values; `g_grad_norm`; and those of
      `adversary.update`.
    """
    rng = jax.random.fold_in(rng, state.step)
    flip_rng, places_rng = jax.random.split(rng)
    mirrored = jax.random.bernoulli(flip_rng) if cut.flip else None
    a, b = batch["a"], batch["b"]
    sources = [_mirror(a, mirrored)] + [_mirror(b, mirrored)] * cut.identity

    def forward(g: Any) -> tuple[Array, list[Array]]:
        return cut.generator.apply(g, interleave(*sources), method="with_features")

    made, pullback, keys = jax.vjp(forward, state.g, has_aux=True)
    if cut.flip:  # keys are of the images as they are, queries are mirrored back
        images = interleave(a, *[b] * cut.identity)
        keys = cut.generator.apply(state.g, images, method="encode")
    fake = made[:: len(sources)]
    judge, theirs = adversary.update(
        cut.adversary, state.adversary, _mirror(b, mirrored), fake, state.step
    )

    places = draw_places(places_rng, keys, cut.patches)
    keys = jax.lax.stop_gradient(cut.head.apply(state.head, keys, places))

    def loss_fn(g: Any, head: Any, made: Array) -> tuple[Array, Metrics]:
        fooled = adversary.generator_loss(cut.adversary, judge, made[:: len(sources)])
        maps = cut.generator.apply(g, made, method="encode")
        queries = cut.head.apply(head, [_mirror(x, mirrored) for x in maps], places)
        losses = [
            _mean_nce(queries, keys, slice(k, None, len(sources)), cut.temperature)
            for k in range(len(sources))
        ]
        loss = cut.adversary.weight * fooled + cut.nce_weight * sum(losses) / len(losses)
        names = ("nce_loss", "identity_nce_loss")
        return loss, {"g_loss": fooled, **dict(zip(names, losses, strict=False))}

    (of_g, of_head, of_made), metrics = jax.grad(loss_fn, (0, 1, 2), has_aux=True)(
        state.g, state.head, made
    )
    through = pullback(of_made)[0]
    g_grads, head_grads = pmean((jax.tree.map(jnp.add, of_g, through), of_head), cut.axis_name)
    g, g_opt = optim.update(cut.g_tx, g_grads, state.g_opt, state.g)
    head, head_opt = optim.update(cut.head_tx, head_grads, state.head_opt, state.head)

    metrics |= theirs | {"a2b_correlation": translation.correlation(sources[0], fake)}
    total = len(a) * axis_size(cut.axis_name)
    new = State(
        step=state.step + 1,
        g=g,
        head=head,
        g_opt=g_opt,
        head_opt=head_opt,
        adversary=judge,
        ema=optim.averaged(state.ema, g, state.step, total, cut.ema_half_life, cut.ema_ramp_up),
        colour=translation.running_colour(state.colour, b, state.step, cut.axis_name),
    )
    return new, pmean(metrics, cut.axis_name) | {"g_grad_norm": optax.tree.norm(g_grads)}


def translate(cut: CUT, state: State, images: Array, direction: str = "a2b") -> Array:
    """Images of domain a as images of b, by the averaged weights.

    Args:
      images: (B, H, W, C) in [-1, 1]; H and W are multiples of `multiple(cut)`.
      direction: "a2b"; UserError for another.

    Returns:
      the same shape, float32 in [-1, 1].
    """
    if direction != "a2b":
        raise UserError(f"CUT translates a to b alone, not {direction!r}.")
    return cut.generator.apply(weights(state), images, train=False)


def multiple(cut: CUT) -> int:
    """Of which the sizes of images to translate are multiples."""
    return multiple_of(cut.generator)


def sample(cut: CUT, state: State, rng: Array, batch: Batch) -> Array:
    """The translations of the batch's `a`."""
    return translate(cut, state, batch["a"])


def baselines(cut: CUT, state: State, batch: Batch) -> dict[str, Array]:
    """What a translation must beat: the targets' mean colour, and the image itself."""
    return {"constant": translation.constant(state.colour, batch["a"]), "copied": batch["a"]}


def eval_step(cut: CUT, state: State, batch: Batch, rng: Array) -> dict[str, tuple[Array, Array]]:
    """{name: (sum, count)}: `translation.paired_sums` where the batch has the truth, else none."""
    made = sample(cut, state, rng, batch)
    return domains.measured(batch, "b", made, baselines(cut, state, batch))


def preview(cut: CUT, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch, a row an image: a | a to b, then b | b to b."""
    a, b = batch["a"][:8], batch["b"][:8]
    columns = [a, translate(cut, state, a), b, translate(cut, state, b)]
    return {"a2b": jnp.stack(columns, 1)}


def weights(state: State) -> Any:
    """The generator's averaged variables."""
    return state.g if state.ema is None else state.ema


def _mirror(x: Array, mirrored: Array | None) -> Array:
    return x if mirrored is None else jnp.where(mirrored, x[:, :, ::-1], x)


def _mean_nce(queries: list[Array], keys: list[Array], part: slice, temperature: float) -> Array:
    pairs = zip(queries, keys, strict=True)
    return sum(patch_nce(q[part], k[part], temperature) for q, k in pairs) / len(keys)
