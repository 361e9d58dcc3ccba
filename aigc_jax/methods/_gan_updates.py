"""The two updates of a GAN's step; a part of `methods.gan`, whose `GAN` and `State` they take."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from aigc_jax import optim
from aigc_jax.layers.condition import Condition
from aigc_jax.losses import penalties
from aigc_jax.methods._gan_augment import seen
from aigc_jax.methods._gan_matching import Told, auxiliary_loss, both
from aigc_jax.parallel import interleave, pmean
from aigc_jax.types import Array, Metrics

_CHANGED = ["batch_stats", "auxiliary"]  # of D: what is kept, and what it sows


def draw_latents(gan: Any, keys: Array, truncation: float | None = None) -> Array:
    """(B, latent_dim) normal latents by keys (B,), truncated as `methods.gan.sample` says."""
    shape = (gan.generator.latent_dim,)
    if truncation is None:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    draw = jax.random.truncated_normal
    return jax.vmap(lambda key: draw(key, -truncation, truncation, shape))(keys)


def generate(gan: Any, g: Any, keys: Array, condition: Condition) -> tuple[Array, Any, Any]:
    """Images, the pullback of their gradients to the parameters, and the new statistics."""
    z = draw_latents(gan, keys)

    def forward(params: Any) -> tuple[Array, Any]:
        variables = {**g, "params": params}
        return gan.generator.apply(variables, z, condition, train=True, mutable=["batch_stats"])

    return jax.vjp(forward, g["params"], has_aux=True)


def update_d(
    gan: Any, state: Any, real: Array, fake: Array, told: Told, keys: Array
) -> tuple[Any, Any, Metrics]:
    """D's new variables and optimizer state, and metrics."""
    real, fake = (seen(gan, state.extras, x, keys, i) for i, x in enumerate((real, fake)))
    # One pass over real and fake, interleaved, so that every layout of devices sees the same
    # groups; batch norm keeps their statistics apart.
    images = interleave(real, fake)
    conditions = both(told.right, told.wrong)

    def loss_fn(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
        variables = {**state.d, "params": params}
        logits, stats = gan.discriminator.apply(
            variables, images, conditions, train=True, groups=2, mutable=_CHANGED
        )
        sown, stats = _apart(stats)
        logits = logits.reshape(len(real), 2, 1 if told.wrong is None else 2, -1)
        logits_real, logits_fake = logits[:, 0, 0], logits[:, 1, 0]
        loss = gan.loss.discriminator(logits_real, logits_fake)
        metrics = {
            "d_loss": loss,
            "d_real": logits_real.mean(),
            "d_fake": logits_fake.mean(),
            "d_accuracy": jnp.mean(logits_real > logits_fake),
        }
        if state.extras:
            metrics["d_sign"] = jnp.mean(jnp.sign(logits_real))
        if told.wrong is not None:
            logits_wrong = logits[:, 0, 1]
            mismatched = gan.loss.discriminator(logits_real, logits_wrong)
            loss = (1 - gan.mismatch) * loss + gan.mismatch * mismatched
            metrics["d_mismatch_accuracy"] = jnp.mean(logits_real > logits_wrong)
        if gan.auxiliary and told.right is not None:
            found = auxiliary_loss(sown, told.right, told.keep, gan.axis_name)
            loss, metrics["d_auxiliary"] = loss + gan.auxiliary * found, found
        penalty, terms = _penalties(gan, variables, real, fake, told.right, keys, state.step)
        return loss + penalty, (metrics | terms, stats)

    grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(state.d["params"])
    grads = pmean(grads, gan.axis_name)
    params, d_opt = optim.update(gan.d_tx, grads, state.d_opt, state.d["params"])
    metrics["d_grad_norm"] = optax.tree.norm(grads)
    return {**state.d, **stats, "params": params}, d_opt, metrics


def _penalties(
    gan: Any,
    variables: Any,
    real: Array,
    fake: Array,
    condition: Condition,
    keys: Array,
    step: Array,
) -> tuple[Array | float, Metrics]:
    """The weighted sum and each term; every `penalty_every` steps, else zeros."""
    weights = {name: getattr(gan, name) for name in ("gradient_penalty", "r1", "r2")}

    def critic(images: Array) -> Array:
        apply = gan.discriminator.apply
        return apply(variables, images, condition, train=True, mutable=_CHANGED)[0]

    def terms() -> tuple[Array | float, Metrics]:
        return penalties.weighted(critic, real, fake, keys, weights)

    if gan.penalty_every == 1 or not any(weights.values()):
        return terms()
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(terms))
    total, found = jax.lax.cond(step % gan.penalty_every == 0, terms, lambda: zeros)
    return gan.penalty_every * total, found


def update_g(
    gan: Any, state: Any, fakes: Array, pullback: Any, told: Told, keys: Array
) -> tuple[Any, Any, Metrics]:
    """G's new variables and optimizer state, and metrics, by the images that D has just seen."""

    def loss_fn(images: Array) -> tuple[Array, Metrics]:
        apply = gan.discriminator.apply
        images = seen(gan, state.extras, images, keys, 2)
        logits, stats = apply(state.d, images, told.right, train=True, mutable=_CHANGED)
        loss = gan.loss.generator(logits)
        metrics = {"g_loss": loss}
        if gan.auxiliary and told.right is not None:
            sown, _ = _apart(stats)
            found = auxiliary_loss(sown, told.right, told.keep, gan.axis_name)
            loss, metrics["g_auxiliary"] = loss + gan.auxiliary * found, found
        return loss, metrics

    (_, metrics), cotangent = jax.value_and_grad(loss_fn, has_aux=True)(fakes)
    grads = pmean(pullback(cotangent)[0], gan.axis_name)
    params, g_opt = optim.update(gan.g_tx, grads, state.g_opt, state.g["params"])
    metrics["g_grad_norm"] = optax.tree.norm(grads)
    return {**state.g, "params": params}, g_opt, metrics


def _apart(changed: Any) -> tuple[Any, Any]:
    """What D sowed, and the statistics to keep."""
    changed = dict(changed)
    return changed.pop("auxiliary", {}), changed
