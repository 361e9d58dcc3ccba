"""A trained GAN's use: images, latents, how real images look to it; a part of `methods.gan`.

The functions take its `GAN` and `State`.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax import models
from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Condition, for_grid, of_batch
from aigc_jax.methods._gan_matching import part
from aigc_jax.methods._gan_updates import draw_latents
from aigc_jax.models import condition_encoder
from aigc_jax.parallel import index_keys
from aigc_jax.types import Array, Batch


def sample(
    gan: Any,
    state: Any,
    rng: Array,
    batch: Batch,
    truncation: float | None = None,
    guidance: float | None = None,
) -> Array:
    """Images from the averaged weights, one for each example of `batch`.

    Args:
      batch: `index` (B,) int32, which with `rng` settles each image, whatever the batch around it;
        `label` (B,) if conditional on labels, else they are drawn evenly; or a text's fields.
      truncation: how varied images are, against how good. Of a generator with styles, how far w
        goes from its mean, 1 all the way (Karras et al. 2019, appendix B); of others, latents are
        normal but within +-truncation (Brock et al. 2019, section 3.1). None: not truncated.
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
    if truncation is not None:
        styled = models.changed(gan.generator, truncation=truncation)
        if styled is not None:
            gan, truncation = dataclasses.replace(gan, generator=styled), None
    return decode(gan, state, latents(gan, rng, batch, truncation), batch)


def latents(gan: Any, rng: Array, batch: Batch, truncation: float | None = None) -> Array:
    """(B, latent_dim) normal latents, each settled by `rng` and its example's `index`."""
    return draw_latents(gan, index_keys(rng, batch["index"]), truncation)


def decode(gan: Any, state: Any, z: Array, batch: Batch) -> Array:
    """Images (B, H, W, C) in [-1, 1] of z (B, latent_dim), and of the condition if there is one."""
    condition = condition_of(gan, batch, slice(None))
    images = gan.generator.apply(weights(state), z, condition, train=False)
    return _picture(gan, images)


def realism(gan: Any, state: Any, images: Array, batch: Batch) -> Array:
    """(B,) minus what G would pay for each image in [-1, 1], given its condition if there is one.

    Beside a real image of logit 0, where the loss compares the two. UserError with a palette.
    """
    if gan.palette:
        raise UserError("A run of label maps can't judge pictures.")
    condition = condition_of(gan, batch, slice(None))
    # Each image by itself: statistics of a minibatch would tell of the others.
    judge = models.changed(gan.discriminator, mbstd_group=1) or gan.discriminator
    logits = judge.apply(state.d, images, condition, train=False)
    beside = (0.0,) if gan.loss.relativistic else ()
    return -jax.vmap(lambda logit: gan.loss.generator(logit, *beside))(logits)


def preview(gan: Any, state: Any, rng: Array, batch: Batch) -> dict[str, Array]:
    """A grid to watch: {"samples": (rows, columns, H, W, C)}, a row a class, latents by `rng`.

    Of texts a row each, the real image first.
    """
    fields = for_grid(batch, gan.num_classes)
    images = sample(gan, state, rng, fields)
    images = images.reshape(-1, 8, *images.shape[1:])
    if "label" not in fields:
        images = jnp.concatenate([batch["image"][: len(images), None], images], 1)
    return {"samples": images}


def weights(state: Any) -> Any:
    """The generator's averaged variables, which `sample` draws by and another run may use."""
    return state.g if state.ema is None else state.ema


def settle(gan: Any, state: Any) -> Any:
    """The state with standing statistics in what `weights` gives (Brock et al. 2019, appendix D).

    Running statistics, batch norm's and the mean style, become means over `gan.standing` batches of
    64 images of these very weights, labels drawn evenly. The state as it is with `standing` 0, or
    without such statistics.
    """
    variables = weights(state)
    if not gan.standing or "batch_stats" not in variables:
        return state
    settled = {**variables, "batch_stats": _standing(gan, variables)}
    return state.replace(g=settled) if state.ema is None else state.replace(ema=settled)


@partial(jax.jit, static_argnums=0)
def _standing(gan: Any, variables: Any) -> Any:
    """The means over batches of what the generator's running statistics follow."""
    network = models.changed(gan.generator, axis_name=None) or gan.generator

    def moved(start: Any, i: Array) -> Any:
        keys = index_keys(jax.random.key(0), 64 * i + jnp.arange(64))
        more = {"keys": keys} if getattr(network, "needs_keys", False) else {}
        label = _drawn_labels(gan, keys) if gan.num_classes else None
        begun = {**variables, "batch_stats": start}
        z = draw_latents(gan, keys)
        kept = ["batch_stats", "spectral"]
        return network.apply(begun, z, label, train=True, mutable=kept, **more)[1]["batch_stats"]

    # Each pass takes keep * start + (1 - keep) * batch: from 0 and from 1 it tells keep.
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    ones, first = jax.tree.map(jnp.ones_like, zeros), jnp.zeros((), jnp.int32)
    add = lambda i, total: jax.tree.map(jnp.add, total, moved(zeros, i))  # noqa: E731
    total = jax.lax.fori_loop(0, gan.standing, add, zeros)
    keep = jax.tree.map(jnp.subtract, moved(ones, first), moved(zeros, first))
    return jax.tree.map(lambda t, k: t / gan.standing / (1 - k), total, keep)


def condition_of(gan: Any, batch: Batch, rows: slice) -> Condition:
    """What some examples of a batch are conditioned on."""
    return part(of_batch(batch, gan.num_classes), rows)


def _picture(gan: Any, images: Array) -> Array:
    """What is shown of an image: the image, or of a label map the likeliest label's colours."""
    if not gan.palette:
        return images
    palette = jnp.asarray(gan.palette, jnp.float32) / 127.5 - 1
    return jax.nn.one_hot(images.argmax(-1), len(palette)) @ palette


def _drawn_labels(gan: Any, keys: Array) -> Array:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, gan.num_classes))(keys)
