"""What keeps a GAN's networks smooth beside its penalties; a part of `methods.gan`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import models
from aigc_jax.augment.ada import blitted
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.condition import Condition
from aigc_jax.losses import regularizers as losses
from aigc_jax.parallel import interleave, separate
from aigc_jax.types import Array, Metrics


class Regularizers(NamedTuple):
    """Weights, 0: left out; the fields of `config.regularizers`.

    Attributes:
      lecam: of logits far from where the other side's have been (Tseng et al. 2021).
      lecam_decay: of their moving averages, an update of D.
      lecam_start: updates of G before it begins.
      consistency: of D's logits of real images beside those of the same mirrored and moved, CR
        (Zhang et al. 2020).
      consistency_fake: the same of generated ones, bCR (Zhao et al. 2021, section 3.1).
      consistency_latent: of D's logits of images whose latents are close, zCR (section 3.2).
      latent_push: how much G is to make such images differ.
      latent_noise: the distance of their latents, a deviation.
      path_length: of the lengths by which images move with their styles (Karras et al. 2020b, 3.2).
      path_every: steps between them, each then weighing as many.
      path_decay: of their mean, each time.
      orthogonal: of G's kernels off orthogonality (Brock et al. 2019, eq. 3).
    """

    lecam: float = 0.0
    lecam_decay: float = 0.99
    lecam_start: int = 1000
    consistency: float = 0.0
    consistency_fake: float = 0.0
    consistency_latent: float = 0.0
    latent_push: float = 0.5
    latent_noise: float = 0.05
    path_length: float = 0.0
    path_every: int = 4
    path_decay: float = 0.99
    orthogonal: float = 0.0


NONE = Regularizers()


def read(fields: Any) -> Regularizers:
    """Of a config's section. UserError for a field that isn't there, or a value out of range."""
    for name, value in fields.items():
        if name not in Regularizers._fields:
            hint = did_you_mean(name, Regularizers._fields)
            raise UserError(f"Unknown config key 'regularizers.{name}'.{hint}")
        if (
            not value >= 0  # as of a nan
            or (name.endswith("decay") and value >= 1)
            or (name == "path_every" and not value)
        ):
            raise UserError(f"config.regularizers.{name} is {value}: it is out of range.")
    return Regularizers(**fields)


def begin(gan: Any) -> dict[str, Array]:
    """What the state carries of them. UserError: G has no styles whose paths have lengths."""
    carried = []
    if gan.regularizers.lecam:
        carried += ["lecam_real", "lecam_fake"]
    if gan.regularizers.path_length:
        if not hasattr(gan.generator, "mapping"):
            raise UserError(
                "config.regularizers.path_length is of generators with a mapping to styles, such "
                "as stylegan2: set it to 0."
            )
        carried.append("path_length")
    # An array each: a step is given them all, and takes none twice.
    return {name: jnp.zeros((), jnp.float32) for name in carried}


# ---- of D


def of_logits(gan: Any, state: Any, real: Array, fake: Array) -> tuple[Array | float, Metrics]:
    """The weighted term that D's logits of real and generated images give, and it by name."""
    weight, extras = gan.regularizers.lecam, state.extras
    if not weight:
        return 0.0, {}
    found = losses.lecam(real, fake, extras["lecam_real"], extras["lecam_fake"])
    found = jnp.where(state.step < gan.regularizers.lecam_start, 0.0, found)
    return weight * found, {"lecam": found}


def followed(gan: Any, extras: dict[str, Array], metrics: Metrics) -> dict[str, Array]:
    """The extras after an update of D with such metrics, means over all devices."""
    if not gan.regularizers.lecam:
        return extras
    keep = gan.regularizers.lecam_decay
    names = {"lecam_real": "d_real", "lecam_fake": "d_fake"}
    # Zeros are what they begin with: the first update sets them.
    fresh = (extras["lecam_real"] == 0) & (extras["lecam_fake"] == 0)
    means = {
        mine: jnp.where(fresh, metrics[its], keep * extras[mine] + (1 - keep) * metrics[its])
        for mine, its in names.items()
    }
    return extras | means


def consistency(
    gan: Any,
    judge: Any,
    pairs: tuple[Array, Array],
    logits: tuple[Array, Array],
    near: Array | None,
    condition: Condition,
    keys: Array,
) -> tuple[Array | float, Metrics]:
    """How far D's logits move with images that should leave them: the weighted sum, and by name.

    Args:
      judge: (images, condition, groups) -> logits.
      pairs: real and generated images (B, H, W, C), as D sees them.
      logits: D's of both.
      near: images of latents close to those of the generated ones.
      keys: (B,), also used elsewhere.
    """
    weights, terms = gan.regularizers, {}
    moved = [_moved(x, keys, use) for use, x in enumerate(pairs)] if _asks(weights) else []
    if weights.consistency_fake:
        again = separate(judge(interleave(*moved), condition, 2), 2)
        terms["consistency"], terms["consistency_fake"] = map(_squares, again, logits)
    elif weights.consistency:
        terms["consistency"] = _squares(judge(moved[0], condition, 1), logits[0])
    if weights.consistency_latent:
        terms["consistency_latent"] = _squares(judge(near, condition, 1), logits[1])
    return sum((getattr(weights, name) * x for name, x in terms.items()), 0.0), terms


def _asks(weights: Regularizers) -> bool:
    return bool(weights.consistency or weights.consistency_fake)


def _squares(a: Array, b: Array) -> Array:
    return jnp.mean((a.reshape(-1) - b.reshape(-1)) ** 2)


def _moved(images: Array, keys: Array, use: int) -> Array:
    """Half of them mirrored, all moved by up to an eighth of the side (Zhang et al. 2020, 3.1)."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 200 + use)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (7,)))(keys)
    upright = draws.at[:, 2].set(1.0)  # of `blitted`: never turned
    return blitted(images, upright, jnp.ones(()))


# ---- of G


def gradients_of_g(
    gan: Any, state: Any, g: Any, z: Array, condition: Condition, keys: Array, render: Any
) -> tuple[Any, Metrics]:
    """What they add to the gradient of G's parameters, None for nothing, and the terms by name.

    Args:
      g: G's variables.
      z, keys: (B, ...), of the images.
      render: (parameters, z) -> images.
    """
    weights, found, terms = gan.regularizers, [], {}
    if weights.orthogonal:
        value, slope = jax.value_and_grad(losses.orthogonal)(g["params"])
        terms["orthogonal"] = value
        found.append(jax.tree.map(lambda x: weights.orthogonal * x, slope))
    if weights.consistency_latent and weights.latent_push:
        value, slope = jax.value_and_grad(_spread, argnums=2)(gan, render, g["params"], z, keys)
        terms["latent_spread"] = value
        found.append(jax.tree.map(lambda x: -weights.latent_push * x, slope))
    if weights.path_length:
        slope, more = _path(gan, state, g, z, condition, keys)
        terms |= more
        found.append(slope)
    return (jax.tree.map(lambda *x: sum(x), *found) if found else None), terms


def close(gan: Any, z: Array, keys: Array) -> Array:
    """Latents at a small distance of z (B, latent_dim), by keys (B,)."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 300)
    noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)
    return z + gan.regularizers.latent_noise * noise


def _spread(gan: Any, render: Any, params: Any, z: Array, keys: Array) -> Array:
    return _squares(render(params, z), render(params, close(gan, z, keys)))


def _path(
    gan: Any, state: Any, g: Any, z: Array, condition: Condition, keys: Array
) -> tuple[Any, Metrics]:
    """The gradient of the path lengths, of half of the images, every `path_every` steps."""
    weights, wanted = gan.regularizers, state.extras["path_length"]
    if gan.axis_name is not None and len(z) % 2:
        raise UserError(
            f"Path lengths are of half of the images, and a device has {len(z)}: take a "
            "config.batch_size that is even on each device."
        )
    half = jax.tree.map(lambda x: x[::2], (z, condition, keys))

    def loss_fn(params: Any) -> tuple[Array, Array]:
        lengths = _lengths(gan, {**g, "params": params}, *half)
        return jnp.mean((lengths - wanted) ** 2), lengths.mean()

    def now() -> tuple[Any, Metrics]:
        (loss, mean), slope = jax.value_and_grad(loss_fn, has_aux=True)(g["params"])
        factor = weights.path_length * weights.path_every
        slope = jax.tree.map(lambda x: factor * x, slope)
        return slope, {"path_loss": loss, "path_length": mean}

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(now))
    return jax.lax.cond(state.step % weights.path_every == 0, now, lambda: zeros)


def _lengths(gan: Any, g: Any, z: Array, condition: Condition, keys: Array) -> Array:
    network = models.changed(gan.generator, axis_name=None) or gan.generator
    ws = network.apply(g, z, condition, train=False, method="mapping")
    size, channels = network.image_size, network.channels
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, 400), (size, size, channels))  # noqa: E731

    def synthesis(ws: Array) -> Array:
        return network.apply(g, ws, keys, train=False, method="synthesis")

    return losses.path_lengths(synthesis, ws, jax.vmap(draw)(keys))


def followed_path(
    gan: Any, extras: dict[str, Array], step: Array, metrics: Metrics
) -> dict[str, Array]:
    """The extras after an update of G with such metrics, means over all devices."""
    if "path_length" not in extras:
        return extras
    weights, old = gan.regularizers, extras["path_length"]
    new = weights.path_decay * old + (1 - weights.path_decay) * metrics["path_length"]
    return extras | {"path_length": jnp.where(step % weights.path_every == 0, new, old)}
