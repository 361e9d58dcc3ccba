"""What judges made images: a discriminator, and a perceptual distance, as in VQGAN and pix2pix.

Methods without a truth (CycleGAN, CUT) train their generators on `generator_loss`. One that
reconstructs takes the gradient of its own loss with respect to the reconstruction,
lets `sharpen` add to it, and pulls the sum back through its networks, once:

```
reconstruction, pullback = jax.vjp(forward, params)
gradient = jax.grad(loss)(reconstruction)
gradient, metrics = adversary.sharpen(spec, state, frozen, image, reconstruction, gradient, step)
grads = pullback(gradient)
state, metrics = adversary.update(spec, state, image, reconstruction, step)
```

Sources: Esser et al. 2021 (VQGAN), section 3.1; Larsen et al. 2016 (VAE-GAN).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from aigc_jax import config as configs
from aigc_jax import models, optim
from aigc_jax.errors import UserError
from aigc_jax.losses import adversarial
from aigc_jax.losses.perceptual import perceptual_distance
from aigc_jax.models.classifier import stages
from aigc_jax.parallel import axis_size, interleave, pmean, psum
from aigc_jax.types import Array, Metrics, PyTree

_KEPT = ["batch_stats", "spectral"]  # of a discriminator, besides its parameters


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The static half.

    Attributes:
      discriminator: module(images, label, train=, groups=) -> logits; None: no adversarial term.
      tx: the discriminator's optax transformation.
      loss: a pair of functions of logits.
      weight: of the adversarial gradient, in lengths of the gradient it is added to if adaptive.
      adaptive: whether the adversarial gradient is scaled to that length first.
      start: the step at which the discriminator begins.
      features: (variables, images) -> maps (B, h, w, c); None: no perceptual term.
      perceptual_weight: of the perceptual distance.
      axis_name: the pmapped batch axis, or None.
    """

    discriminator: nn.Module | None = None
    tx: optax.GradientTransformation | None = None
    loss: adversarial.AdversarialLoss = adversarial.hinge
    weight: float = 0.8
    adaptive: bool = True
    start: int = 0
    features: Callable[[PyTree, Array], Sequence[Array]] | None = None
    perceptual_weight: float = 1.0
    axis_name: str | None = None


class State(struct.PyTreeNode):
    """What training changes: the discriminator's variables and its optimizer's state."""

    variables: Any
    opt: Any


def defaults() -> ConfigDict:
    """The section `adversary` of a config, with both terms off."""
    return ConfigDict(
        {
            "discriminator": {"name": "patchgan", "width": 64, "num_layers": 2, "norm": "batch"},
            "loss": "hinge",
            "weight": 0.0,  # of the adversarial term; 0: none
            "adaptive": True,  # the weight is in lengths of the other terms' gradient
            "start": 0,  # the step at which the discriminator begins
            "lr": placeholder(float),  # the discriminator's; None: optimizer.lr
            "b1": 0.5,
            "b2": 0.9,
            "perceptual_weight": 0.0,  # needs config.frozen.perceptual, a classifier's workdir
        }
    )


def from_config(config: ConfigDict, axis_name: str | None = None) -> Adversary | None:
    """The static half that `config.adversary` describes; None where there is nothing to do.

    The discriminator's schedule spans the steps from `start` on.

    Raises:
      UserError: an unknown name or field; a perceptual weight without a network to see through, or
        with one that reads other images.
    """
    section = config.get("adversary")
    if not section or not (section.weight or section.perceptual_weight):
        return None
    discriminator = tx = features = None
    loss = adversarial.get(section.loss)
    if loss.relativistic:
        raise UserError(
            f"config.adversary.loss is {section.loss!r}, which compares pairs of images, and here "
            "there are none: take hinge, least_squares or non_saturating."
        )
    if section.weight:
        discriminator = models.build(
            section.discriminator,
            "Discriminator",
            image_size=config.image_size,
            dtype=jnp.dtype(config.dtype),
            axis_name=axis_name,
        )
        steps = config.num_train_steps - section.start
        if steps < 1:
            raise UserError(
                f"config.adversary.start is {section.start}, the end of the run: set it below "
                f"num_train_steps = {config.num_train_steps}."
            )
        moments = dict(lr=section.lr, b1=section.b1, b2=section.b2)
        tx = optim.optimizer(config.optimizer, steps, **moments)
    if section.perceptual_weight:
        features = functools.partial(stages, _perceptual_network(config))
    return Adversary(
        discriminator=discriminator,
        tx=tx,
        loss=loss,
        weight=section.weight,
        adaptive=section.get("adaptive", True),
        start=section.start,
        features=features,
        perceptual_weight=section.perceptual_weight,
        axis_name=axis_name,
    )


def required(config: ConfigDict, axis_name: str | None, method: str) -> Adversary:
    """`from_config` for a method that trains on `generator_loss` from its first step on.

    Raises:
      UserError: as `from_config`; no weight; a field that such a method does not heed.
    """
    section = config.adversary
    if not section.weight:
        raise UserError(f"config.adversary.weight is 0: {method} needs its discriminator.")
    for field, off in (("adaptive", False), ("start", 0), ("perceptual_weight", 0.0)):
        if section[field]:
            raise UserError(
                f"config.adversary.{field} is {section[field]}, which {method} has no use for: "
                f"set it to {off}."
            )
    return from_config(config, axis_name)


def init(
    adversary: Adversary | None, rng: Array, images: Array, condition: Array | None = None
) -> State | None:
    """The state before the first step; `images` (B, H, W, C), `condition` are for their shapes.

    None where there is no discriminator.
    """
    if adversary is None or adversary.discriminator is None:
        return None
    variables = adversary.discriminator.init(rng, _beside(condition, images)[:1], train=False)
    return State(variables, adversary.tx.init(variables["params"]))


def sharpen(
    adversary: Adversary,
    state: State | None,
    frozen: Mapping[str, PyTree],
    real: Array,
    fake: Array,
    gradient: Array,
    step: Array,
    condition: Array | None = None,
) -> tuple[Array, Metrics]:
    """The gradient of a reconstruction loss, with the perceptual and the adversarial one added.

    The adversarial one is scaled by `weight` and, if adaptive, by |g| / (|g_adv| + 1e-4), at most
    1e4, where g is the sum of the other two: Esser et al. 2021, eq. 7 (the constants are of its
    code), but with the gradients in the image instead of the decoder's last layer, which spares two
    passes back and asks nothing of the decoder.
    Lengths are over the global batch. Before `start` the adversarial one is 0.

    Args:
      frozen: {"perceptual": variables} where there is a perceptual term.
      real, fake: (B, H, W, C) in [-1, 1], the images and their reconstructions.
      gradient: (B, H, W, C), of the mean loss of this device's examples with respect to `fake`.
      step: () int32.
      condition: (B, H, W, C') that the discriminator sees beside each image (Isola et al. 2017).

    Returns:
      the gradient, and the scalars `perceptual` (the mean distance), `g_loss` (G's adversarial
      loss) and `adaptive_weight` (the ratio above), as far as there are such terms.
    """
    metrics = {}
    if adversary.features is not None:
        see = functools.partial(adversary.features, frozen["perceptual"])
        metrics["perceptual"], perceptual = _perceptual_gradient(see, real, fake)
        gradient = gradient + adversary.perceptual_weight * perceptual
    if adversary.discriminator is not None:
        metrics["g_loss"], adversarial_gradient = _adversarial_gradient(
            adversary, state, fake, step, condition
        )
        if adversary.adaptive:
            ratio = _adaptive_weight(gradient, adversarial_gradient, adversary.axis_name)
            ratio = metrics["adaptive_weight"] = jnp.where(step >= adversary.start, ratio, 0.0)
            adversarial_gradient = ratio * adversarial_gradient
        gradient = gradient + adversary.weight * adversarial_gradient
    return gradient, pmean(metrics, adversary.axis_name)


def update(
    adversary: Adversary,
    state: State | None,
    real: Array,
    fake: Array,
    step: Array,
    condition: Array | None = None,
) -> tuple[State | None, Metrics]:
    """One update of the discriminator; before `start` none, and its metrics are 0.

    Args:
      real, fake: (B, H, W, C) in [-1, 1].
      step: () int32.
      condition: (B, H, W, C') that the discriminator sees beside each image.

    Returns:
      the state and the scalars `d_loss`, `d_real` and `d_fake` (mean logits), `d_accuracy` (how
      often a real image's logit is above that of the made one beside it) and `d_grad_norm`.
    """
    if adversary.discriminator is None:
        return state, {}
    real, fake = _beside(condition, real), _beside(condition, fake)
    train = functools.partial(_update, adversary, real=real, fake=fake)
    if not adversary.start:
        return train(state)

    def wait(state: State) -> tuple[State, Metrics]:
        return state, jax.tree.map(jnp.zeros_like, jax.eval_shape(train, state)[1])

    return lax.cond(step >= adversary.start, train, wait, state)


def _perceptual_network(config: ConfigDict) -> nn.Module:
    """The classifier of the run at `config.frozen.perceptual`."""
    workdir = config.frozen.get("perceptual")
    if not workdir:
        raise UserError(
            f"config.adversary.perceptual_weight is {config.adversary.perceptual_weight}, but "
            "there is no network to see through: set config.frozen.perceptual to the workdir of a "
            "classifier's run."
        )
    run = configs.of_run(workdir)
    if run.method != "classifier":
        raise UserError(
            f"config.frozen.perceptual = {workdir} is a run of the method {run.method!r}: name the "
            "workdir of a classifier's."
        )
    for field in ("image_size", "channels"):
        if run[field] != config[field]:
            raise UserError(
                f"The classifier at config.frozen.perceptual = {workdir} reads images with {field} "
                f"{run[field]}, not {config[field]}: train one on such images."
            )
    dtype = jnp.dtype(config.dtype)
    return models.build(run.model, "Classifier", num_classes=run.num_classes, dtype=dtype)


def _perceptual_gradient(see: Callable, real: Array, fake: Array) -> tuple[Array, Array]:
    of_real = see(real)
    return jax.value_and_grad(lambda fake: perceptual_distance(see(fake), of_real).mean())(fake)


def generator_loss(
    adversary: Adversary, state: State, fake: Array, condition: Array | None = None
) -> Array:
    """The loss () that the discriminator gives images `fake`, unweighted."""
    apply, images = adversary.discriminator.apply, _beside(condition, fake)
    logits, _ = apply(state.variables, images, train=True, mutable=_KEPT)
    return adversary.loss.generator(logits)


def _beside(condition: Array | None, images: Array) -> Array:
    return images if condition is None else jnp.concatenate([condition, images], -1)


def _adversarial_gradient(
    adversary: Adversary, state: State, fake: Array, step: Array, condition: Array | None
) -> tuple[Array, Array]:
    """The loss that the discriminator gives `fake` and its gradient; zeros before `start`."""

    def loss_fn(fake: Array) -> Array:
        return generator_loss(adversary, state, fake, condition)

    judge = jax.value_and_grad(loss_fn)
    if not adversary.start:
        return judge(fake)
    return lax.cond(
        step >= adversary.start,
        judge,
        lambda fake: (jnp.zeros(()), jnp.zeros_like(fake)),
        fake,
    )


def _adaptive_weight(gradient: Array, adversarial_gradient: Array, axis_name: str | None) -> Array:
    ratio = _length(gradient, axis_name) / (_length(adversarial_gradient, axis_name) + 1e-4)
    return jnp.minimum(ratio, 1e4)


def _length(gradient: Array, axis_name: str | None) -> Array:
    """Of the global batch's gradient, of which each device has its part, times their number."""
    return jnp.sqrt(psum(jnp.sum(gradient**2), axis_name)) / axis_size(axis_name)


def _update(
    adversary: Adversary, state: State, *, real: Array, fake: Array
) -> tuple[State, Metrics]:
    # One pass over real and fake, interleaved, so that every layout of devices sees the same
    # groups; batch norm keeps their statistics apart.
    images = interleave(real, fake)

    def loss_fn(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        logits, stats = adversary.discriminator.apply(
            {**state.variables, "params": params},
            images,
            train=True,
            groups=2,
            mutable=_KEPT,
        )
        logits = logits.reshape(len(real), 2, -1)
        logits_real, logits_fake = logits[:, 0], logits[:, 1]
        loss = adversary.loss.discriminator(logits_real, logits_fake)
        metrics = {
            "d_loss": loss,
            "d_real": logits_real.mean(),
            "d_fake": logits_fake.mean(),
            "d_accuracy": jnp.mean(logits_real > logits_fake),
        }
        return loss, (metrics, stats)

    params = state.variables["params"]
    grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(params)
    grads, metrics = pmean((grads, metrics), adversary.axis_name)
    params, opt = optim.update(adversary.tx, grads, state.opt, params)
    metrics["d_grad_norm"] = optax.tree.norm(grads)
    return State({**state.variables, **stats, "params": params}, opt), metrics
