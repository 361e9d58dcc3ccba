"""The two updates of a GAN's step; a part of `methods.gan`, whose `GAN` and `State` they take."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from aigc_jax import optim
from aigc_jax.layers.condition import Condition
from aigc_jax.losses import penalties
from aigc_jax.methods._gan_augment import seen
from aigc_jax.methods._gan_matching import Told, auxiliary_loss, both
from aigc_jax.methods._gan_regularizers import (
    close,
    consistency,
    followed,
    followed_path,
    gradients_of_g,
    of_logits,
)
from aigc_jax.metrics.diversity import within_class_variance
from aigc_jax.parallel import in_parts, interleave, pmean
from aigc_jax.types import Array, Metrics

_KEPT = ["batch_stats", "spectral"]  # of a network, besides its parameters
_SOWN = "auxiliary"  # by D


class Part(NamedTuple):
    """What an update sees of a batch.

    Attributes:
      images: (B, H, W, C) real ones.
      told: of them and of the generated ones.
      keys: (B,), one an example, by its position in the batch of all devices.
      label: (B,), of the classes; None where there are none.
    """

    images: Array
    told: Told
    keys: Array
    label: Array | None


class Made(NamedTuple):
    """Generated images (B, H, W, C), the pullback to G's parameters, G's new statistics."""

    images: Array
    pullback: Any
    stats: Any


def draw_latents(gan: Any, keys: Array, truncation: float | None = None) -> Array:
    """(B, latent_dim) normal latents by keys (B,), truncated as `methods.gan.sample` says."""
    shape = (gan.generator.latent_dim,)
    if truncation is None:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    draw = jax.random.truncated_normal
    return jax.vmap(lambda key: draw(key, -truncation, truncation, shape))(keys)


def generate(gan: Any, g: Any, part: Part, z: Array | None = None) -> Made:
    """Images of latents z (B, latent_dim), None: those that the keys draw."""
    z = draw_latents(gan, part.keys) if z is None else z
    render = functools.partial(_rendered, gan, g, part)
    images, pullback, stats = jax.vjp(lambda p: render(p, z), g["params"], has_aux=True)
    return Made(images, pullback, stats)


def _rendered(gan: Any, g: Any, part: Part, params: Any, z: Array) -> tuple[Array, Any]:
    """Images in training, and G's new statistics."""
    more = {"keys": part.keys} if getattr(gan.generator, "needs_keys", False) else {}
    variables, right = {**g, "params": params}, part.told.right
    return gan.generator.apply(variables, z, right, train=True, mutable=_KEPT, **more)


# ---- D


def update_d(gan: Any, state: Any, part: Part, made: Made | None) -> tuple[Any, Metrics]:
    """The state after an update of D, and metrics.

    Args:
      made: what G makes of the part; None: it is made here, a part at a time.
    """

    def gradients(stats: Any, part: Part) -> tuple[Any, tuple[Any, Metrics]]:
        own = made or generate(gan, state.g, part)
        return _d_gradients(gan, state, stats, part, own.images)

    stats = {name: x for name, x in state.d.items() if name != "params"}
    stats, found = in_parts(gradients, stats, part, gan.accumulate)
    grads, metrics = pmean(found, gan.axis_name)
    scale = state.extras.get("lr_scale")
    params, opt = optim.update(gan.d_tx, grads, state.d_opt, state.d["params"], scale)
    metrics["d_grad_norm"] = optax.tree.norm(grads)
    extras = followed(gan, state.extras, metrics)
    return state.replace(d={**stats, "params": params}, d_opt=opt, extras=extras), metrics


def _d_gradients(
    gan: Any, state: Any, stats: Any, part: Part, fake: Array
) -> tuple[Any, tuple[Any, Metrics]]:
    """D's new statistics, gradient and metrics."""
    told, keys = part.told, part.keys
    see = functools.partial(seen, gan, state.extras, keys=keys)
    pair = see(part.images, use=0), see(fake, use=1)
    # One pass over real and fake, interleaved, so that every layout of devices sees the same
    # groups; batch norm keeps their statistics apart.
    images, conditions = interleave(*pair), both(told.right, told.wrong)
    near = _near(gan, state, part, see)

    def loss_fn(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
        variables = {**stats, "params": params}

        def judge(images: Array, condition: Condition, groups: int = 1) -> tuple[Array, Any]:
            return _judged(gan, variables, images, condition, groups)

        logits, (sown, new) = judge(images, conditions, 2)
        logits = logits.reshape(len(fake), 2, 1 if told.wrong is None else 2, -1)
        loss, metrics = _d_loss(gan, state, logits, told, sown)
        again = lambda *args: judge(*args)[0]  # noqa: E731
        real_and_fake = logits[:, 0, 0], logits[:, 1, 0]
        terms = [
            of_logits(gan, state, *real_and_fake),
            consistency(gan, again, pair, real_and_fake, near, told.right, keys),
            # Slopes in the images themselves, through what augments them.
            _penalties(gan, lambda x: again(see(x, use=0), told.right), part, fake, state.step),
        ]
        for value, found in terms:
            loss, metrics = loss + value, metrics | found
        return loss, (metrics, new)

    grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(state.d["params"])
    return stats, (grads, metrics)


def _near(gan: Any, state: Any, part: Part, see: Any) -> Array | None:
    """Images of latents that are close to those of the part, where D is asked about them."""
    if not gan.regularizers.consistency_latent:
        return None
    z = close(gan, draw_latents(gan, part.keys), part.keys)
    return see(generate(gan, state.g, part, z).images, use=1)


def _judged(
    gan: Any, variables: Any, images: Array, condition: Condition, groups: int = 1
) -> tuple[Array, Any]:
    """Logits, and (what D sows, its new statistics)."""
    logits, changed = gan.discriminator.apply(
        variables, images, condition, train=True, groups=groups, mutable=[*_KEPT, _SOWN]
    )
    changed = dict(changed)
    return logits, (changed.pop(_SOWN, {}), changed)


def _d_loss(gan: Any, state: Any, logits: Array, told: Told, sown: Any) -> tuple[Array, Metrics]:
    """Of logits (B, real and fake, right and wrong conditions, ...), and of what D sowed."""
    real, fake = logits[:, 0, 0], logits[:, 1, 0]
    loss = gan.loss.discriminator(real, fake)
    metrics = {
        "d_loss": loss,
        "d_real": real.mean(),
        "d_fake": fake.mean(),
        "d_accuracy": jnp.mean(real > fake),
    }
    if "ada_p" in state.extras:
        metrics["d_sign"] = jnp.mean(jnp.sign(real))
    if told.wrong is not None:
        wrong = logits[:, 0, 1]
        mismatched = gan.loss.discriminator(real, wrong)
        loss = (1 - gan.mismatch) * loss + gan.mismatch * mismatched
        metrics["d_mismatch_accuracy"] = jnp.mean(real > wrong)
    if gan.auxiliary and told.right is not None:
        found = auxiliary_loss(sown, told.right, told.keep, gan.axis_name)
        loss, metrics["d_auxiliary"] = loss + gan.auxiliary * found, found
    return loss, metrics


def _penalties(
    gan: Any, critic: penalties.Critic, part: Part, fake: Array, step: Array
) -> tuple[Array | float, Metrics]:
    """The weighted sum and each term; every `penalty_every` steps, else zeros."""
    weights = {name: getattr(gan, name) for name in ("gradient_penalty", "r1", "r2")}
    if not any(weights.values()):
        return 0.0, {}

    def terms() -> tuple[Array, Metrics]:
        return penalties.weighted(critic, part.images, fake, part.keys, weights)

    if gan.penalty_every == 1:
        total, found = terms()
    else:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(terms))
        total, found = jax.lax.cond(step % gan.penalty_every == 0, terms, lambda: zeros)
    if gan.penalty_end != 1:
        total = total * optim.annealed(step, 1.0, gan.penalty_end, gan.penalty_steps)
    return gan.penalty_every * total, found


# ---- G


def update_g(gan: Any, state: Any, part: Part, made: Made | None) -> tuple[Any, Metrics]:
    """The state after an update of G, by the images that D has just seen unless made here.

    Args:
      made: see `update_d`.
    """

    def gradients(stats: Any, part: Part) -> tuple[Any, tuple[Any, Metrics]]:
        g = {**stats, "params": state.g["params"]}
        return _g_gradients(gan, state, g, part, made or generate(gan, g, part))

    stats = {name: x for name, x in state.g.items() if name != "params"}
    stats, found = in_parts(gradients, stats, part, gan.accumulate)
    grads, metrics = pmean(found, gan.axis_name)
    scale = state.extras.get("lr_scale")
    params, opt = optim.update(gan.g_tx, grads, state.g_opt, state.g["params"], scale)
    metrics["g_grad_norm"] = optax.tree.norm(grads)
    extras = followed_path(gan, state.extras, state.step, metrics)
    return state.replace(g={**stats, "params": params}, g_opt=opt, extras=extras), metrics


def _g_gradients(
    gan: Any, state: Any, g: Any, part: Part, made: Made
) -> tuple[Any, tuple[Any, Metrics]]:
    """G's new statistics, gradient and metrics."""
    loss_fn = functools.partial(_g_loss, gan, state, part)
    (_, metrics), cotangent = jax.value_and_grad(loss_fn, has_aux=True)(made.images)
    (grads,) = made.pullback(cotangent)
    more, terms = gradients_of_g(
        gan, state, g, draw_latents(gan, part.keys), part.told.right, part.keys,
        lambda params, z: _rendered(gan, g, part, params, z)[0],
    )  # fmt: skip
    grads = grads if more is None else jax.tree.map(jnp.add, grads, more)
    metrics |= terms | {"diversity": _diversity(gan, made.images, part)}
    return made.stats, (grads, metrics)


def _g_loss(gan: Any, state: Any, part: Part, images: Array) -> tuple[Array, Metrics]:
    told, which = part.told, int(gan.loss.relativistic)  # G's of a pair
    see = functools.partial(seen, gan, state.extras, keys=part.keys)
    if gan.loss.relativistic:
        pair = interleave(see(part.images, use=3), see(images, use=2))
        logits, (sown, _) = _judged(gan, state.d, pair, told.right, 2)
        logits = logits.reshape(len(images), 2, -1)
        loss = gan.loss.generator(logits[:, 1], logits[:, 0])
    else:
        logits, (sown, _) = _judged(gan, state.d, see(images, use=2), told.right)
        loss = gan.loss.generator(logits)
    metrics = {"g_loss": loss}
    if gan.auxiliary and told.right is not None:
        found = auxiliary_loss(sown, told.right, told.keep, gan.axis_name, which)
        loss, metrics["g_auxiliary"] = loss + gan.auxiliary * found, found
    return loss, metrics


def _diversity(gan: Any, fakes: Array, part: Part) -> Array:
    """The variance of generated images within their classes, relative to real ones'."""
    variance = functools.partial(
        within_class_variance,
        label=part.label,
        num_classes=gan.num_classes if part.label is not None else 0,
        axis_name=gan.axis_name,
    )
    return (variance(fakes) + 1e-4) / (variance(part.images) + 1e-4)
