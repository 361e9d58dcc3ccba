"""StarGAN (Choi et al. 2018): one generator translates images of any class to any other.

Networks: `aigc_jax.models.stargan`. Config: `configs/mnist_stargan.py`.
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
from aigc_jax.losses import penalties
from aigc_jax.losses.adversarial import wasserstein
from aigc_jax.metrics import translation
from aigc_jax.models import multiple as multiple_of
from aigc_jax.parallel import axis_size, example_keys, interleave, pmean
from aigc_jax.types import Array, Batch, Metrics


class State(struct.PyTreeNode):
    """What training changes: arrays only, no device axis.

    Attributes:
      step: () int32, updates of G so far.
      g, d: variables of the networks.
      g_opt, d_opt: optimizer states.
      ema: moving average of g; None when it is off.
      colour: (C,), the mean colour of the images seen so far.
    """

    step: Array
    g: Any
    d: Any
    g_opt: Any
    d_opt: Any
    ema: Any
    colour: Array


@dataclasses.dataclass(frozen=True)
class StarGAN:
    """The static half.

    Attributes:
      generator: module(images, label, train=) -> images, without batch norm.
      discriminator: module(images, train=) -> (logits of patches, logits of classes).
      g_tx, d_tx: optax transformations.
      num_classes: 2 or more.
      d_steps: updates of D per update of G.
      gradient_penalty, class_weight, cycle_weight: of the terms of the paper's eq. 2, 4 and 5.
      ema_half_life: in images; 0 keeps no average.
      ema_ramp_up: see `optim.ema`.
      axis_name: the pmapped batch axis, or None.
    """

    generator: nn.Module
    discriminator: nn.Module
    g_tx: optax.GradientTransformation
    d_tx: optax.GradientTransformation
    num_classes: int
    d_steps: int = 5
    gradient_penalty: float = 10.0
    class_weight: float = 1.0
    cycle_weight: float = 10.0
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def defaults() -> ConfigDict:
    """The method's own fields of a config, as published."""
    return ConfigDict(
        {
            "generator": {"name": "stargan", "width": 64, "blocks": 6},
            "discriminator": {"name": "stargan", "width": 64},
            "d_steps": 5,
            "gradient_penalty": 10.0,
            "class_weight": 1.0,
            "cycle_weight": 10.0,
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> StarGAN:
    """The static half that a config describes. UserError for names that don't exist."""
    if config.num_classes < 2:
        raise UserError(
            "StarGAN translates between the classes of a data set: it needs labels, of 2 classes "
            'or more (config.task = "label").'
        )
    common = dict(
        image_size=config.image_size,
        channels=config.channels,
        num_classes=config.num_classes,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
    tx = functools.partial(optim.optimizer, config.optimizer)
    own = lambda name: {k: config[name].get(k) for k in ("lr", "b2")}  # noqa: E731
    steps = config.num_train_steps
    return StarGAN(
        generator=models.build(config.generator, "Generator", **common),
        discriminator=models.build(config.discriminator, "Discriminator", **common),
        g_tx=tx(steps, **own("generator")),
        d_tx=tx(
            steps * config.d_steps, lr=config.discriminator.lr, b2=config.discriminator.get("b2")
        ),
        num_classes=config.num_classes,
        d_steps=config.d_steps,
        gradient_penalty=config.gradient_penalty,
        class_weight=config.class_weight,
        cycle_weight=config.cycle_weight,
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(gan: StarGAN, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step; `batch` gives the shapes of `image` and `label`."""
    g_rng, d_rng = jax.random.split(rng)
    image, label = batch["image"][:1], batch["label"][:1]
    g = gan.generator.init(g_rng, image, label, train=False)
    d = gan.discriminator.init(d_rng, image, train=False)
    return State(
        step=jnp.zeros((), jnp.int32),
        g=g,
        d=d,
        g_opt=gan.g_tx.init(g),
        d_opt=gan.d_tx.init(d),
        ema=jax.tree.map(jnp.copy, g) if gan.ema_half_life else None,
        colour=jnp.zeros(image.shape[-1:]),
    )


def train_step(gan: StarGAN, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """`d_steps` updates of D and one of G, each image towards a class drawn for it.

    Args:
      batch: `image` (d_steps * B, H, W, C) in [-1, 1], `label` (d_steps * B,) int32; update k of D
        sees the examples k, k + d_steps, ..., and G those of the last.
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: `d_loss`, `gradient_penalty`, `d_class_loss` (of real images),
      `d_class_accuracy`; `g_loss`, `class_loss` and `class_accuracy` (of translations, by D),
      `cycle_loss`; gradient norms.
    """
    rng = jax.random.fold_in(rng, state.step)
    for k in range(gan.d_steps):
        images, label = (batch[name][k :: gan.d_steps] for name in ("image", "label"))
        keys = example_keys(jax.random.fold_in(rng, k), len(images), gan.axis_name)
        target = _drawn(keys, gan.num_classes)
        forward = functools.partial(_forward, gan, images, target)
        fake, pullback = jax.vjp(forward, state.g)
        state, d_metrics = _update_d(gan, state, images, label, fake, keys)
    g, g_opt, g_metrics = _update_g(gan, state, images, label, target, fake, pullback)
    total = len(batch["image"]) * axis_size(gan.axis_name)
    rates = gan.ema_half_life, gan.ema_ramp_up
    new = state.replace(
        step=state.step + 1,
        g=g,
        g_opt=g_opt,
        ema=optim.averaged(state.ema, g, state.step, total, *rates),
        colour=translation.running_colour(state.colour, batch["image"], state.step, gan.axis_name),
    )
    return new, d_metrics | g_metrics


def translate(gan: StarGAN, state: State, images: Array, label: Array) -> Array:
    """Images (B, H, W, C) in [-1, 1] as images of the classes `label` (B,), averaged weights."""
    return gan.generator.apply(weights(state), images, label, train=False)


def multiple(gan: StarGAN) -> int:
    """Of which the sizes of images to translate are multiples."""
    return multiple_of(gan.generator)


def sample(gan: StarGAN, state: State, rng: Array, batch: Batch) -> Array:
    """For each label of the batch an image of another label, translated to it.

    It is the nearest after the example itself, around the batch; its own where no label differs.
    """
    return translate(gan, state, _others(batch), batch["label"])


def baselines(gan: StarGAN, state: State, batch: Batch) -> dict[str, Array]:
    """What a translation must beat: the mean colour, and the image that was translated."""
    others = _others(batch)
    return {"constant": translation.constant(state.colour, others), "copied": others}


def eval_step(
    gan: StarGAN, state: State, batch: Batch, rng: Array
) -> dict[str, tuple[Array, Array]]:
    """{name: (sum, count)}: `cycle_l1`, of images translated and back, as a share of the range."""
    images, label, valid = batch["image"], batch["label"], batch["valid"]
    there = translate(gan, state, images, (label + 1) % gan.num_classes)
    lost = translation.l1(translate(gan, state, there, label), images)
    return {"cycle_l1": ((lost * valid).sum(), valid.sum())}


def preview(gan: StarGAN, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch, a row an image: itself, then as each class, 16 at most."""
    images, classes = batch["image"][:8], range(min(gan.num_classes, 16))
    label = jnp.zeros(len(images), jnp.int32)
    made = [translate(gan, state, images, label + k) for k in classes]
    return {"classes": jnp.stack([images, *made], 1)}


def weights(state: State) -> Any:
    """The generator's averaged variables."""
    return state.g if state.ema is None else state.ema


def _forward(gan: StarGAN, images: Array, label: Array, g: Any) -> Array:
    return gan.generator.apply(g, images, label, train=True)


def _others(batch: Batch) -> Array:
    label, place = batch["label"], jnp.arange(len(batch["label"]))
    ahead = (place[None] - place[:, None]) % len(place)
    other = jnp.where(label[None] != label[:, None], ahead, len(place))
    nearest = jnp.where(other.min(1) < len(place), other.argmin(1), place)
    return batch["image"][nearest]


def _drawn(keys: Array, num_classes: int) -> Array:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)  # the penalty folds 1
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys)


def _cross_entropy(logits: Array, label: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def _accuracy(logits: Array, label: Array) -> Array:
    return jnp.mean(logits.argmax(-1) == label)


def _update_d(
    gan: StarGAN, state: State, real: Array, label: Array, fake: Array, keys: Array
) -> tuple[State, Metrics]:
    # Real and fake interleave, so that every layout of devices sees the same groups.
    images = interleave(real, fake)

    def loss_fn(d: Any) -> tuple[Array, Metrics]:
        patches, classes = gan.discriminator.apply(d, images, train=True)
        d_loss = wasserstein.discriminator(patches[0::2], patches[1::2])
        class_loss = _cross_entropy(classes[0::2], label)

        def critic(x: Array) -> Array:
            return gan.discriminator.apply(d, x, train=True)[0].sum((1, 2))

        terms = {"gradient_penalty": gan.gradient_penalty, "r1": 0.0, "r2": 0.0}
        penalty, penalised = penalties.weighted(critic, real, fake, keys, terms)
        metrics = {
            "d_loss": d_loss,
            "d_class_loss": class_loss,
            "d_class_accuracy": _accuracy(classes[0::2], label),
        }
        return d_loss + gan.class_weight * class_loss + penalty, metrics | penalised

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.d)
    grads, metrics = pmean((grads, metrics), gan.axis_name)
    d, d_opt = optim.update(gan.d_tx, grads, state.d_opt, state.d)
    return state.replace(d=d, d_opt=d_opt), metrics | {"d_grad_norm": optax.tree.norm(grads)}


def _update_g(
    gan: StarGAN,
    state: State,
    images: Array,
    label: Array,
    target: Array,
    fake: Array,
    pullback: Any,
) -> tuple[Any, Any, Metrics]:
    def loss_fn(g: Any, fake: Array) -> tuple[Array, Metrics]:
        patches, classes = gan.discriminator.apply(state.d, fake, train=True)
        back = gan.generator.apply(g, fake, label, train=True)
        metrics = {
            "g_loss": wasserstein.generator(patches),
            "class_loss": _cross_entropy(classes, target),
            "cycle_loss": jnp.mean(jnp.abs(back - images)),
        }
        loss = metrics["g_loss"] + gan.class_weight * metrics["class_loss"]
        loss = loss + gan.cycle_weight * metrics["cycle_loss"]
        return loss, metrics | {"class_accuracy": _accuracy(classes, target)}

    (of_g, of_fake), metrics = jax.grad(loss_fn, (0, 1), has_aux=True)(state.g, fake)
    grads = jax.tree.map(jnp.add, of_g, pullback(of_fake)[0])
    grads, metrics = pmean((grads, metrics), gan.axis_name)
    g, g_opt = optim.update(gan.g_tx, grads, state.g_opt, state.g)
    return g, g_opt, metrics | {"g_grad_norm": optax.tree.norm(grads)}
