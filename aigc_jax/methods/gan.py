"""Generative adversarial networks (Goodfellow et al. 2014): any generator, discriminator and loss.

Models: `aigc_jax.models.dcgan`. Losses: `aigc_jax.losses.adversarial`, `.penalties`.
Configs: `configs/digits_dcgan.py`, `configs/mnist_dcgan.py`.
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
from aigc_jax.losses import adversarial, penalties
from aigc_jax.metrics import collapse
from aigc_jax.metrics.diversity import within_class_variance
from aigc_jax.parallel import axis_size, example_keys, index_keys, interleave, pmean
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
      generator: module(z, label, train=) -> images.
      discriminator: module(images, label, train=, groups=) -> logits.
      g_tx, d_tx: optax transformations.
      loss: a pair of functions of logits.
      num_classes: 0 for unconditional.
      d_steps: updates of D per update of G.
      gradient_penalty, r1, r2: weights of the penalties on D.
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
    ema_half_life: float = 0.0
    ema_ramp_up: float = 0.05
    axis_name: str | None = None


def from_config(config: ConfigDict, axis_name: str | None = None) -> GAN:
    """The static half that a config describes. UserError for names that don't exist."""
    common = dict(
        image_size=config.image_size,
        channels=config.channels,
        num_classes=config.num_classes,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
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
        ema_half_life=config.ema.half_life,
        ema_ramp_up=config.ema.ramp_up,
        axis_name=axis_name,
    )


def init_state(gan: GAN, rng: Array, batch: Batch, frozen: Any = None) -> State:
    """The state before the first step.

    Args:
      batch: any batch, for its shapes: `image` (B, H, W, C), and `label` (B,) if conditional.
    """
    g_rng, d_rng = jax.random.split(rng)
    image, label = batch["image"][:1], _label(gan, batch, slice(1))
    g = gan.generator.init(g_rng, jnp.zeros((1, gan.generator.latent_dim)), label, train=False)
    d = gan.discriminator.init(d_rng, image, label, train=False)
    return State(
        step=jnp.zeros((), jnp.int32),
        g=g,
        d=d,
        g_opt=gan.g_tx.init(g["params"]),
        d_opt=gan.d_tx.init(d["params"]),
        ema=jax.tree.map(jnp.copy, g) if gan.ema_half_life else None,
        frozen={} if frozen is None else frozen,
        extras={},
    )


def train_step(gan: GAN, state: State, batch: Batch, rng: Array) -> tuple[State, Metrics]:
    """`d_steps` updates of D and one of G, the last two on the same generated images.

    Args:
      batch: `image` (d_steps * B, H, W, C) in [-1, 1], `label` (d_steps * B,) int32; update k of D
        sees the examples k, k + d_steps, ...
      rng: the run's root key, the same at every step and on every device.

    Returns:
      the new state and scalars: losses, mean logits, how often D puts a real image above the
      generated one beside it, gradient norms, and the diversity of the generated images relative
      to the real ones (1: as varied, 0: collapsed).
    """
    rng = jax.random.fold_in(rng, state.step)
    for k in range(gan.d_steps):
        images = batch["image"][k :: gan.d_steps]
        label = _label(gan, batch, slice(k, None, gan.d_steps))
        keys = example_keys(jax.random.fold_in(rng, k), len(images), gan.axis_name)
        fakes, pullback, g_stats = _generate(gan, state.g, keys, label)
        d, d_opt, d_metrics = _update_d(gan, state, images, fakes, label, keys)
        state = state.replace(d=d, d_opt=d_opt)
    g, g_opt, g_metrics = _update_g(gan, state, fakes, pullback, label)
    g = {**g, **g_stats}

    variance = functools.partial(
        within_class_variance, label=label, num_classes=gan.num_classes, axis_name=gan.axis_name
    )
    metrics = pmean(d_metrics | g_metrics, gan.axis_name)
    metrics["diversity"] = (variance(fakes) + 1e-4) / (variance(images) + 1e-4)
    total = len(batch["image"]) * axis_size(gan.axis_name)
    rates = gan.ema_half_life, gan.ema_ramp_up
    ema = optim.averaged(state.ema, g, state.step, total, *rates)
    return state.replace(step=state.step + 1, g=g, g_opt=g_opt, ema=ema), metrics


def sample(
    gan: GAN, state: State, rng: Array, batch: Batch, truncation: float | None = None
) -> Array:
    """Images from the averaged weights, one for each example of `batch`.

    Args:
      batch: `index` (B,) int32, which with `rng` settles each image, whatever the batch around it;
        `label` (B,) if conditional, else labels are drawn evenly.
      truncation: latents are normal but within +-truncation (Brock et al. 2019, section 3.1);
        None: not truncated.

    Returns:
      (B, H, W, C) float32 in [-1, 1].
    """
    if gan.num_classes and "label" not in batch:
        batch = {**batch, "label": _drawn_labels(gan, index_keys(rng, batch["index"]))}
    return decode(gan, state, latents(gan, rng, batch, truncation), batch)


def latents(gan: GAN, rng: Array, batch: Batch, truncation: float | None = None) -> Array:
    """(B, latent_dim) normal latents, each settled by `rng` and its example's `index`."""
    return _latents(gan, index_keys(rng, batch["index"]), truncation)


def decode(gan: GAN, state: State, z: Array, batch: Batch) -> Array:
    """Images (B, H, W, C) in [-1, 1] of z (B, latent_dim), and of `label` if conditional."""
    label = _label(gan, batch, slice(None))
    return gan.generator.apply(weights(state), z, label, train=False)


def realism(gan: GAN, state: State, images: Array, batch: Batch) -> Array:
    """(B,) minus what G would pay for each image in [-1, 1], given `label` if conditional."""
    label = _label(gan, batch, slice(None))
    logits = gan.discriminator.apply(state.d, images, label, train=False)
    return -jax.vmap(gan.loss.generator)(logits)


def preview(gan: GAN, state: State, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch: {"samples": (rows, columns, H, W, C)}, a row a class, latents by `rng`."""
    rows = min(gan.num_classes, 16) or 8
    index = jnp.arange(rows * 8, dtype=jnp.int32)
    images = sample(gan, state, rng, {"index": index, "label": index // 8})
    return {"samples": images.reshape(rows, 8, *images.shape[1:])}


def weights(state: State) -> Any:
    """The generator's averaged variables, which `sample` draws by and another run may use."""
    return state.g if state.ema is None else state.ema


diagnose = collapse.diagnose


def _label(gan: GAN, batch: Batch, part: slice) -> Array | None:
    return batch["label"][part] if gan.num_classes else None


def _drawn_labels(gan: GAN, keys: Array) -> Array:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, gan.num_classes))(keys)


def _latents(gan: GAN, keys: Array, truncation: float | None = None) -> Array:
    shape = (gan.generator.latent_dim,)
    if truncation is None:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    draw = jax.random.truncated_normal
    return jax.vmap(lambda key: draw(key, -truncation, truncation, shape))(keys)


def _generate(gan: GAN, g: Any, keys: Array, label: Array | None) -> tuple[Array, Any, Any]:
    """Images, the pullback of their gradients to the parameters, and the new statistics."""
    z = _latents(gan, keys)

    def forward(params: Any) -> tuple[Array, Any]:
        variables = {**g, "params": params}
        return gan.generator.apply(variables, z, label, train=True, mutable=["batch_stats"])

    return jax.vjp(forward, g["params"], has_aux=True)


def _update_d(
    gan: GAN, state: State, real: Array, fake: Array, label: Array | None, keys: Array
) -> tuple[Any, Any, Metrics]:
    # One pass over real and fake, interleaved, so that every layout of devices sees the same
    # groups; batch norm keeps their statistics apart.
    images = interleave(real, fake)
    labels = None if label is None else jnp.repeat(label, 2)

    def loss_fn(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
        variables = {**state.d, "params": params}
        logits, stats = gan.discriminator.apply(
            variables, images, labels, train=True, groups=2, mutable=["batch_stats"]
        )
        logits = logits.reshape(len(real), 2, -1)
        logits_real, logits_fake = logits[:, 0], logits[:, 1]
        loss = gan.loss.discriminator(logits_real, logits_fake)
        metrics = {
            "d_loss": loss,
            "d_real": logits_real.mean(),
            "d_fake": logits_fake.mean(),
            "d_accuracy": jnp.mean(logits_real > logits_fake),
        }

        def critic(images: Array) -> Array:
            apply = gan.discriminator.apply
            return apply(variables, images, label, train=True, mutable=["batch_stats"])[0]

        weights = {name: getattr(gan, name) for name in ("gradient_penalty", "r1", "r2")}
        penalty, terms = penalties.weighted(critic, real, fake, keys, weights)
        return loss + penalty, (metrics | terms, stats)

    grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(state.d["params"])
    grads = pmean(grads, gan.axis_name)
    params, d_opt = optim.update(gan.d_tx, grads, state.d_opt, state.d["params"])
    metrics["d_grad_norm"] = optax.tree.norm(grads)
    return {**state.d, **stats, "params": params}, d_opt, metrics


def _update_g(
    gan: GAN, state: State, fakes: Array, pullback: Any, label: Array | None
) -> tuple[Any, Any, Metrics]:
    def loss_fn(images: Array) -> Array:
        apply = gan.discriminator.apply
        logits, _ = apply(state.d, images, label, train=True, mutable=["batch_stats"])
        return gan.loss.generator(logits)

    loss, cotangent = jax.value_and_grad(loss_fn)(fakes)
    grads = pmean(pullback(cotangent)[0], gan.axis_name)
    params, g_opt = optim.update(gan.g_tx, grads, state.g_opt, state.g["params"])
    return (
        {**state.g, "params": params},
        g_opt,
        {"g_loss": loss, "g_grad_norm": optax.tree.norm(grads)},
    )
