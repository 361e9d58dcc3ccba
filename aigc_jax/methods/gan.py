"""Generative adversarial networks (Goodfellow et al. 2014): any generator, discriminator and loss.

Unconditional, or conditional on labels or texts. Then D may be shown real images with conditions
that are not true of them, as fakes (Reed et al. 2016), and may have to tell the condition of an
image, which G's images have to let it (Odena et al. 2017).

Models: `aigc_jax.models.dcgan`, `.resnet_gan`, `.biggan`, `.stylegan2`, `.r3gan`, `.fusion_gan`.
Losses: `aigc_jax.losses.adversarial`, `.penalties`, `.regularizers`.
Configs: `configs/digits_dcgan.py`, `mnist_dcgan.py`, `shapes_text_gan.py`, `shapes_maps_gan.py`,
`cifar10_dcgan.py`, `_wgan_gp`, `_sngan`, `_sagan`, `_biggan`, `_stylegan2`, `_r3gan`.
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
from aigc_jax.layers.condition import Condition, Text
from aigc_jax.losses import adversarial
from aigc_jax.methods._gan_augment import ADA, Ada, check, followed, parse
from aigc_jax.methods._gan_augment import begin as begin_augment
from aigc_jax.methods._gan_matching import told
from aigc_jax.methods._gan_regularizers import NONE, Regularizers, read
from aigc_jax.methods._gan_regularizers import begin as begin_regularizers
from aigc_jax.methods._gan_updates import Part, generate, update_d, update_g
from aigc_jax.methods._gan_use import (
    condition_of,
    decode,
    latents,
    preview,
    realism,
    sample,
    settle,
    weights,
)
from aigc_jax.metrics import collapse
from aigc_jax.parallel import axis_size, example_keys, separate
from aigc_jax.types import Array, Batch, Metrics

__all__ = [
    "GAN",
    "Regularizers",
    "State",
    "calmed",
    "collapsed",
    "conditioning",
    "decode",
    "diagnose",
    "from_config",
    "init_state",
    "latents",
    "lr_scale",
    "preview",
    "realism",
    "sample",
    "settle",
    "train_step",
    "weights",
]


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32, updates of G so far.
      g, d: variables of the networks: {"params": ..., "batch_stats": ..., "spectral": ...}.
      g_opt, d_opt: optimizer states.
      ema: moving average of g, parameters and statistics both; None when it is off.
      frozen: variables of networks that are used and not trained.
      extras: what regularisers carry from step to step.
    """

    step: Array
    g: Any
    d: Any
    g_opt: Any
    d_opt: Any
    ema: Any
    frozen: Any
    extras: Any


@dataclasses.dataclass(frozen=True)
class GAN:
    """The static half.

    Attributes:
      generator: module(z, condition, train=) -> images.
      discriminator: module(images, condition, train=, groups=) -> logits.
      g_tx, d_tx: optax transformations.
      loss: a pair of functions of logits.
      num_classes: 0 for unconditional.
      d_steps: updates of D per update of G.
      gradient_penalty, r1, r2: weights of the penalties on D.
      penalty_every: steps between them, each then weighing as many (Karras et al. 2020b, B).
      penalty_end, penalty_steps: what share of their weights is left after so many steps, along
        half a cosine.
      regularizers: weights of more.
      accumulate: parts of a batch whose gradients are averaged, one after another; batch norm and
        minibatch statistics are of each.
      mismatch: the share that wrong conditions have in D's loss of fakes; 0: D sees none.
      auxiliary: weight of D's telling the condition, where D can; 0: it needn't.
      dropout: share of the conditions that say nothing, so that `guidance` has what it goes from.
      augment: policies of what D sees, real and generated: DiffAugment's, or "ada"; (): none.
      ada: how that adapts.
      palette: RGB of each label, 0 to 255, where images are label maps, `segments` in a batch: G
        makes, and D sees, a channel for each label, 1 where it is and -1 elsewhere.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      standing: batches of the averaged weights that `settle` takes batch norm's statistics from.
      rollback: whether the state carries what `calmed` makes smaller.
      axis_name: the pmapped batch axis, or None.
    """

    generator: nn.Module
    discriminator: nn.Module
    g_tx: optax.GradientTransformation
    d_tx: optax.GradientTransformation
    loss: adversarial.AdversarialLoss = adversarial.non_saturating
    num_classes: int = 0
    d_steps: int = 1
    gradient_penalty: float = 0.0
    r1: float = 0.0
    r2: float = 0.0
    penalty_every: int = 1
    penalty_end: float = 1.0
    penalty_steps: int = 1
    regularizers: Regularizers = NONE
    accumulate: int = 1
    mismatch: float = 0.0
    auxiliary: float = 0.0
    dropout: float = 0.0
    augment: tuple[str, ...] = ()
    ada: Ada = ADA
    palette: tuple[tuple[int, int, int], ...] = ()
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    standing: int = 0
    rollback: bool = False
    axis_name: str | None = None


def conditioning() -> ConfigDict:
    """The fields `config.conditioning` that say how a condition is taught, as a text wants them."""
    return ConfigDict(
        {
            "mismatch": 0.5,  # share of wrong conditions among D's fakes
            "auxiliary": 0.0,  # weight of D's telling the condition; its network must be able to
            "dropout": 0.1,  # share of conditions that say nothing, for guidance
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> GAN:
    """The static half that a config describes. UserError for names that don't exist."""
    palette = tuple(tuple(colour) for colour in config.get("palette", ()))
    taught = config.get("conditioning", {})
    common = dict(
        image_size=config.image_size,
        channels=config.channels,
        num_classes=config.num_classes,
        vocabulary=config.get("vocabulary", 0),
        segments=len(palette),
        dtype=jnp.dtype(config.dtype),
        remat=config.get("remat", False),
        axis_name=axis_name,
    )
    policies = parse(config.get("d_augment", ""))
    ada = Ada(**config.get("ada", {}))
    check(ada)
    for name in ("gradient_penalty", "r1", "r2", "penalty_end"):
        if config.get(name, 0.0) < 0:
            raise UserError(f"config.{name} is {config[name]}: it must be at least 0.")
    if config.ema.get("standing") and config.get("vocabulary"):
        raise UserError("config.ema.standing is of labels, not of texts: set it to 0.")
    if config.get("remat") and not all(
        models.knows(config[name], role, "remat")
        for name, role in (("generator", "Generator"), ("discriminator", "Discriminator"))
    ):
        raise UserError("config.remat: one of these networks has no blocks; set it to False.")
    if palette and {*policies} & {"color", "ada"}:
        raise UserError(
            "config.d_augment recolours, and label maps have no colours: take 'translation,cutout'."
        )
    return GAN(
        generator=models.build(config.generator, "Generator", **common),
        discriminator=models.build(config.discriminator, "Discriminator", **common),
        g_tx=_optimizer(config, config.generator, 1),
        d_tx=_optimizer(config, config.discriminator, config.d_steps),
        loss=adversarial.get(config.loss),
        num_classes=config.num_classes,
        d_steps=config.d_steps,
        gradient_penalty=config.gradient_penalty,
        r1=config.r1,
        r2=config.r2,
        penalty_every=config.get("penalty_every", 1),
        penalty_end=config.get("penalty_end", 1.0),
        penalty_steps=config.optimizer.get("decay_steps") or config.num_train_steps,
        regularizers=read(config.get("regularizers", {})),
        accumulate=config.get("accumulate", 1),
        mismatch=taught.get("mismatch", 0.0),
        auxiliary=taught.get("auxiliary", 0.0),
        dropout=taught.get("dropout", 0.0),
        augment=policies,
        ada=ada,
        palette=palette,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        standing=config.ema.get("standing", 0),
        rollback=config.get("on_collapse", "warn") == "rollback",
        axis_name=axis_name,
    )


def _optimizer(config: ConfigDict, network: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Of a network with `steps` updates a step, whose section may have its own `lr` and `b2`."""
    section = config.optimizer.copy_and_resolve_references()
    if "decay_steps" in section:
        section.decay_steps *= steps
    own = {name: network.get(name) for name in ("lr", "b2")}
    return optim.optimizer(section, config.num_train_steps * steps, **own)


def init_state(gan: GAN, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for its shapes: `image` (B, H, W, C), and `label` (B,) or a text's fields
        (see `layers.condition.of_batch`) if conditional.

    Raises:
      UserError: D is to tell the condition and can't; it is to see wrong labels and there is one.
    """
    g_rng, d_rng = jax.random.split(rng)
    image, condition = _real(gan, batch, slice(1)), condition_of(gan, batch, slice(1))
    z = jnp.zeros((1, gan.generator.latent_dim))
    g = gan.generator.init(g_rng, z, condition, train=False)
    d = gan.discriminator.init(d_rng, image, condition, train=False)
    d, sown = dict(d), d.get("auxiliary")
    d.pop("auxiliary", None)  # not kept
    _check_taught(gan, condition, sown)
    return State(
        step=jnp.zeros((), jnp.int32),
        g=g,
        d=d,
        g_opt=gan.g_tx.init(g["params"]),
        d_opt=gan.d_tx.init(d["params"]),
        ema=jax.tree.map(jnp.copy, g) if gan.ema_half_life else None,
        frozen={} if frozen is None else frozen,
        extras=_begin(gan),
    )


def _begin(gan: GAN) -> dict[str, Array]:
    extras = begin_augment(gan) | begin_regularizers(gan)
    return extras | ({"lr_scale": jnp.ones(())} if gan.rollback else {})


def _check_taught(gan: GAN, condition: Condition, sown: Any) -> None:
    if condition is None:
        return
    if gan.auxiliary and not sown:
        raise UserError(
            "config.conditioning.auxiliary is above 0, and the discriminator tells no condition: "
            "add auxiliary to config.discriminator.condition, or set it to 0."
        )
    if gan.mismatch and gan.num_classes == 1 and not isinstance(condition, Text):
        raise UserError("Of one class there is no wrong label: set config.conditioning.mismatch=0.")


def train_step(gan: GAN, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """`d_steps` updates of D and one of G, the last two on the same generated images.

    Args:
      batch: `image` (d_steps * B, H, W, C) in [-1, 1] (with a palette `segments` (d_steps * B, H,
        W) int), `label` (d_steps * B,) int32 or a text's fields; update k of D sees the examples k,
        k + d_steps, ...
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: losses, mean logits, how often D puts a real image above the
      generated one beside it, gradient norms, the diversity of the generated images relative to
      the real ones (1: as varied, 0: collapsed), each penalty and regularizer in use (0 at steps
      that leave it out), and what the extras hold that changes.
    """
    rng = jax.random.fold_in(rng, state.step)
    by_update = jax.tree.map(lambda x: jnp.stack(separate(x, gan.d_steps)), dict(batch))
    at = lambda k: jax.tree.map(lambda x: x[k], by_update)  # noqa: E731

    def update(state: State, told: tuple[Array, Batch]) -> tuple[State, None]:
        return update_d(gan, state, _part(gan, told[1], rng, told[0]), None)[0], None

    last = gan.d_steps - 1
    if last:  # a loop, so that it compiles once
        state, _ = jax.lax.scan(update, state, (jnp.arange(last), at(slice(last))))
    part = _part(gan, at(last), rng, last)
    # Made once for both updates, unless they go part by part.
    made = generate(gan, state.g, part) if gan.accumulate == 1 else None
    state, d_metrics = update_d(gan, state, part, made)
    state, g_metrics = update_g(gan, state, part, made)
    metrics = d_metrics | g_metrics
    total = len(batch["image"]) * axis_size(gan.axis_name)
    rates = gan.ema_half_life, gan.ema_ramp_up
    ema = optim.averaged(state.ema, state.g, state.step, total, *rates)
    extras = followed(gan, state.extras, state.step, metrics, len(batch["image"]))
    metrics |= {_TOLD[name]: x for name, x in extras.items() if name in _TOLD}
    return state.replace(step=state.step + 1, ema=ema, extras=extras), metrics


# Of the extras, in the metrics, by these names.
_TOLD = {"ada_p": "ada_p", "lr_scale": "lr_scale", "path_length": "path_length_mean"}


def _part(gan: GAN, batch: Batch, rng: Array, k: Array | int) -> Part:
    """What update k of D sees of its examples."""
    images = _real(gan, batch, slice(None))
    keys = example_keys(jax.random.fold_in(rng, k), len(images), gan.axis_name)
    label = batch["label"] if gan.num_classes else None
    return Part(images, told(gan, batch, slice(None), keys), keys, label)


def lr_scale(state: State) -> Array:
    """() by how much learning rates have been made smaller, of a GAN with `rollback`."""
    return state.extras["lr_scale"]


def calmed(state: State, scale: float) -> State:
    """The state with learning rates `scale` times those of the config."""
    return state.replace(extras={**state.extras, "lr_scale": jnp.float32(scale)})


diagnose, collapsed = collapse.diagnose, collapse.collapsed


def _real(gan: GAN, batch: Batch, rows: slice) -> Array:
    """The images, or their label maps with a channel for each label, 1 or -1."""
    if not gan.palette:
        return batch["image"][rows]
    if "segments" not in batch:
        raise UserError(
            "config.palette is of label maps, which this task has not: take segments or "
            "text_segments, or leave it out."
        )
    return 2 * jax.nn.one_hot(batch["segments"][rows], len(gan.palette)) - 1
