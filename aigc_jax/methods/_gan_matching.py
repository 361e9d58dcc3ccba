"""What teaches a GAN that its images are to match their conditions; a part of `methods.gan`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from aigc_jax.layers.condition import Condition, Text, of_batch, said
from aigc_jax.losses import contrastive
from aigc_jax.parallel import all_examples, interleave, own_examples, pmean
from aigc_jax.types import Array, Batch


class Told(NamedTuple):
    """What networks are told of B images.

    Attributes:
      right: what is true of them; for some it says nothing.
      wrong: what is not; None where D is shown none.
      keep: (B,) bool, where `right` says something.
    """

    right: Condition
    wrong: Condition
    keep: Array


def told(gan: Any, batch: Batch, rows: slice, keys: Array) -> Told:
    """Of the examples `rows` of a batch, by keys (B,)."""
    condition, wrong = part(of_batch(batch, gan.num_classes), rows), None
    apart = jax.vmap(jax.random.fold_in, (0, None))  # they are used elsewhere as they are
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - gan.dropout))(apart(keys, 2))
    if condition is not None and gan.mismatch:
        wrong = _wrong(condition, batch, rows, apart(keys, 3), gan.num_classes, gan.axis_name)
    if gan.dropout:
        condition = said(condition, keep, gan.num_classes)
    return Told(condition, wrong, keep)


def part(condition: Condition, rows: slice) -> Condition:
    """The conditions of some examples."""
    return jax.tree.map(lambda x: x[rows], condition)


def _wrong(
    condition: Condition, batch: Batch, rows: slice, keys: Array, num_classes: int, axis_name: Any
) -> Condition:
    """Conditions that are not true of their images (Reed et al. 2016, section 4.2).

    The batch's own `wrong_` texts where it has them, else those of the example before; of labels
    one of the others, by keys (B,).
    """
    if not isinstance(condition, Text):
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, num_classes))
        return (condition + draw(keys)) % num_classes
    given = of_batch(batch, 0, "wrong_")
    if given is not None:
        return part(given, rows)
    rolled = lambda x: jnp.roll(all_examples(x, axis_name), 1, axis=0)  # noqa: E731
    return jax.tree.map(lambda x: own_examples(rolled(x), axis_name), condition)


def both(right: Condition, wrong: Condition) -> Condition:
    """(B, ...) each -> (2B, ...), right and wrong by turns; the right ones where wrong is None."""
    return right if wrong is None else jax.tree.map(interleave, right, wrong)


def auxiliary_loss(
    sown: Any, condition: Condition, keep: Array, axis_name: str | None, which: int = 0
) -> Array:
    """How badly what a discriminator sows tells the conditions of its images.

    Classes by cross-entropy (Odena et al. 2017, section 3), texts by `contrastive.matching` among
    those of all images, wrong ones included (of rolled ones each own text stands there twice: the
    loss is then at least log 2).

    Args:
      sown: its collection `auxiliary`, of B images, or of B pairs of a real image and a fake one;
        and of the k conditions of each, the right one first.
      condition: (B, ...), the right ones.
      keep: (B,) bool, of those that say something.
      which: of a pair's images counts, 0 the real one.
    """
    n, weights = len(keep), keep.astype(jnp.float32)
    weights = weights / jnp.maximum(pmean(weights.mean(), axis_name), 1e-6)
    one = lambda x, i: x.reshape(n, -1, x.shape[-1])[:, i]  # noqa: E731
    if not isinstance(condition, Text):
        logits = one(sown["logits"][0], which)
        label = jnp.minimum(condition, logits.shape[-1] - 1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return jnp.mean(weights * losses)
    image, text = one(sown["image"][0], which), sown["text"][0]
    others = all_examples(text, axis_name)
    return contrastive.matching(image, one(text, 0), others, weights)
