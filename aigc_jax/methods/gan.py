"""Generative adversarial networks (Goodfellow et al. 2014): any generator, discriminator and loss.

Unconditional, or conditional on labels or texts. Then D may be shown real images with conditions
that are not true of them, as fakes (Reed et al. 2016), and may have to tell the condition of an
image, which G's images have to let it (Odena et al. 2017).

Models: `aigc_jax.models.dcgan`, `.fusion_gan`. Losses: `aigc_jax.losses.adversarial`, `.penalties`.
Configs: `configs/digits_dcgan.py`, `mnist_dcgan.py`, `shapes_text_gan.py`, `shapes_maps_gan.py`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from ml_collections import ConfigDict

from aigc_jax import models, optim
from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Condition, Text, for_grid, of_batch
from aigc_jax.losses import adversarial
from aigc_jax.methods._gan_augment import ADA, Ada, begin, check, followed, parse
from aigc_jax.methods._gan_matching import part, told
from aigc_jax.methods._gan_updates import draw_latents, generate, update_d, update_g
from aigc_jax.metrics import collapse
from aigc_jax.metrics.diversity import within_class_variance
from aigc_jax.models import condition_encoder
from aigc_jax.parallel import axis_size, example_keys, index_keys, pmean
from aigc_jax.types import Array, Batch, Metrics


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32, updates of G so far.
      g, d: variables of the networks: {"params": ..., "batch_stats": ...}.
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
      penalty_every: steps between them, each then weighing as many (Karras et al. 2020, B).
      mismatch: the share that wrong conditions have in D's loss of fakes; 0: D sees none.
      auxiliary: weight of D's telling the condition, where D can; 0: it needn't.
      dropout: share of the conditions that say nothing, so that `guidance` has what it goes from.
      augment: policies of what D sees, real and generated: DiffAugment's, or "ada"; (): none.
      ada: how that adapts.
      palette: RGB of each label, 0 to 255, where images are label maps, `segments` in a batch: G
        makes, and D sees, a channel for each label, 1 where it is and -1 elsewhere.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
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
    mismatch: float = 0.0
    auxiliary: float = 0.0
    dropout: float = 0.0
    augment: tuple[str, ...] = ()
    ada: Ada = ADA
    palette: tuple[tuple[int, int, int], ...] = ()
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
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
        axis_name=axis_name,
    )
    policies, ada = parse(config.get("d_augment", "")), Ada(**config.get("ada", {}))
    check(ada)
    if palette and {*policies} & {"color", "ada"}:
        raise UserError(
            "config.d_augment recolours, and label maps have no colours: take 'translation,cutout'."
        )
    tx = functools.partial(optim.optimizer, config.optimizer)
    g_steps = config.num_train_steps
    return GAN(
        generator=models.build(config.generator, "Generator", **common),
        discriminator=models.build(config.discriminator, "Discriminator", **common),
        g_tx=tx(g_steps, lr=config.generator.get("lr")),
        d_tx=tx(g_steps * config.d_steps, lr=config.discriminator.get("lr")),
        loss=adversarial.get(config.loss),
        num_classes=config.num_classes,
        d_steps=config.d_steps,
        gradient_penalty=config.gradient_penalty,
        r1=config.r1,
        r2=config.r2,
        penalty_every=config.get("penalty_every", 1),
        mismatch=taught.get("mismatch", 0.0),
        auxiliary=taught.get("auxiliary", 0.0),
        dropout=taught.get("dropout", 0.0),
        augment=policies,
        ada=ada,
        palette=palette,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(gan: GAN, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for its shapes: `image` (B, H, W, C), and `label` (B,) or a text's fields
        (see `layers.condition.of_batch`) if conditional.

    Raises:
      UserError: D is to tell the condition and can't; it is to see wrong labels and there is one.
    """
    g_rng, d_rng = jax.random.split(rng)
    image, condition = _real(gan, batch, slice(1)), _condition(gan, batch, slice(1))
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
        extras=begin(gan),
    )


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
      generated one beside it, gradient norms, and the diversity of the generated images relative
      to the real ones (1: as varied, 0: collapsed).
    """
    rng = jax.random.fold_in(rng, state.step)
    for k in range(gan.d_steps):
        rows = slice(k, None, gan.d_steps)
        images = _real(gan, batch, rows)
        keys = example_keys(jax.random.fold_in(rng, k), len(images), gan.axis_name)
        known = told(gan, batch, rows, keys)
        fakes, pullback, g_stats = generate(gan, state.g, keys, known.right)
        d, d_opt, d_metrics = update_d(gan, state, images, fakes, known, keys)
        state = state.replace(d=d, d_opt=d_opt)
    g, g_opt, g_metrics = update_g(gan, state, fakes, pullback, known, keys)
    g = {**g, **g_stats}

    variance = functools.partial(
        within_class_variance,
        label=batch["label"][rows] if gan.num_classes else None,
        num_classes=gan.num_classes,
        axis_name=gan.axis_name,
    )
    metrics = pmean(d_metrics | g_metrics, gan.axis_name)
    metrics["diversity"] = (variance(fakes) + 1e-4) / (variance(images) + 1e-4)
    total = len(batch["image"]) * axis_size(gan.axis_name)
    rates = gan.ema_half_life, gan.ema_ramp_up
    ema = optim.averaged(state.ema, g, state.step, total, *rates)
    extras = followed(gan, state.extras, state.step, metrics, len(batch["image"]))
    metrics |= {name: x for name, x in extras.items() if name == "ada_p"}
    return state.replace(step=state.step + 1, g=g, g_opt=g_opt, ema=ema, extras=extras), metrics


def sample(
    gan: GAN,
    state: State,
    rng: Array,
    batch: Batch,
    truncation: float | None = None,
    guidance: float | None = None,
) -> Array:
    """Images from the averaged weights, one for each example of `batch`.

    Args:
      batch: `index` (B,) int32, which with `rng` settles each image, whatever the batch around it;
        `label` (B,) if conditional on labels, else they are drawn evenly; or a text's fields.
      truncation: latents are normal but within +-truncation (Brock et al. 2019, section 3.1);
        None: not truncated.
      guidance: how far beyond its condition an image goes, away from the empty one (see
        `models.condition_encoder`); None: 0, as trained. -1: it isn't told the
        condition (a random field on the output still is).

    Returns:
      (B, H, W, C) float32 in [-1, 1]; with a palette its colours.
    """
    if gan.num_classes and "label" not in batch:
        batch = {**batch, "label": _drawn_labels(gan, index_keys(rng, batch["index"]))}
    if guidance:
        gan = dataclasses.replace(gan, generator=condition_encoder.guided(gan.generator, guidance))
        condition_encoder.check_guidance(gan.dropout)
    return _picture(gan, _decode(gan, state, latents(gan, rng, batch, truncation), batch))


def latents(gan: GAN, rng: Array, batch: Batch, truncation: float | None = None) -> Array:
    """(B, latent_dim) normal latents, each settled by `rng` and its example's `index`."""
    return draw_latents(gan, index_keys(rng, batch["index"]), truncation)


def decode(gan: GAN, state: State, z: Array, batch: Batch) -> Array:
    """Images (B, H, W, C) in [-1, 1] of z (B, latent_dim), and of the condition if there is one."""
    return _picture(gan, _decode(gan, state, z, batch))


def realism(gan: GAN, state: State, images: Array, batch: Batch) -> Array:
    """(B,) minus what G would pay for each image in [-1, 1], given its condition if there is one.

    UserError with a palette.
    """
    if gan.palette:
        raise UserError("A run of label maps can't judge pictures.")
    condition = _condition(gan, batch, slice(None))
    logits = gan.discriminator.apply(state.d, images, condition, train=False)
    return -jax.vmap(gan.loss.generator)(logits)


def preview(gan: GAN, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch: {"samples": (rows, columns, H, W, C)}, a row a class, latents by `rng`.

    Of texts a row each, the real image first.
    """
    fields = for_grid(batch, gan.num_classes)
    images = sample(gan, state, rng, fields)
    images = images.reshape(-1, 8, *images.shape[1:])
    if "label" not in fields:
        images = jnp.concatenate([batch["image"][: len(images), None], images], 1)
    return {"samples": images}


def weights(state: State) -> Any:
    """The generator's averaged variables, which `sample` draws by and another run may use."""
    return state.g if state.ema is None else state.ema


diagnose = collapse.diagnose


def _condition(gan: GAN, batch: Batch, rows: slice) -> Condition:
    return part(of_batch(batch, gan.num_classes), rows)


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


def _picture(gan: GAN, images: Array) -> Array:
    """What is shown of an image: the image, or of a label map the likeliest label's colours."""
    if not gan.palette:
        return images
    palette = jnp.asarray(gan.palette, jnp.float32) / 127.5 - 1
    return jax.nn.one_hot(images.argmax(-1), len(palette)) @ palette


def _decode(gan: GAN, state: State, z: Array, batch: Batch) -> Array:
    condition = _condition(gan, batch, slice(None))
    return gan.generator.apply(weights(state), z, condition, train=False)


def _drawn_labels(gan: GAN, keys: Array) -> Array:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, gan.num_classes))(keys)
