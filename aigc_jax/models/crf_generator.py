"""A conditional random field on the output of any generator, steered by the same condition.

`config.generator.crf` puts it there: "mean_field" on label maps, "gaussian" on images.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.condition import Condition, Text
from aigc_jax.layers.crf import GaussianCRF, MeanFieldCRF
from aigc_jax.types import Array

KINDS = ("gaussian", "mean_field")


class CRFGenerator(nn.Module):
    """generator(z or image, condition) -> the mean of a field around its output.

    "mean_field": the generator has a channel for each label; tanh's output, scaled by a learned
    factor, is the field's logits and its guide, and probabilities Q come out as 2 Q - 1.
    "gaussian": the generator's image is both what the field is around and its guide.

    Attributes:
      generator: module(x, condition, ..., train=) -> (B, H, W, C) in [-1, 1].
      kind: "mean_field" or "gaussian".
      iterations: of mean field, or of conjugate gradients at most; 0: the layer's own choice.
      window: of mean field, see `MeanFieldCRF`; 0: every pixel with every other.
      sharpness: the factor of the logits at first.
      conditional: whether the condition enters the field's potentials.
      num_classes: of labels.
      vocabulary: of texts of tokens. UserError if there is such a text and it is 0.
      width: of the mean of a text's embedded tokens.
    """

    generator: nn.Module
    kind: str
    iterations: int = 0
    window: int = 7
    sharpness: float = 5.0
    conditional: bool = True
    num_classes: int = 0
    vocabulary: int = 0
    width: int = 32

    @property
    def latent_dim(self) -> int:
        """The generator's own."""
        return self.generator.latent_dim

    @property
    def needs_keys(self) -> bool:
        """Whether the generator takes keys for its noise."""
        return getattr(self.generator, "needs_keys", False)

    @property
    def image_size(self) -> int:
        """The generator's own."""
        return self.generator.image_size

    @property
    def channels(self) -> int:
        """The generator's own."""
        return self.generator.channels

    @nn.compact
    def __call__(self, x: Array, condition: Condition = None, *args: Any, **kwargs: Any) -> Array:
        """What the generator takes -> (B, H, W, C) float32 in [-1, 1], as it makes."""
        # An argument that was not given is not passed on: some generators take no condition.
        told = (condition, *args) if args or condition is not None else ()
        image = self.generator(x, *told, **kwargs).astype(jnp.float32)
        vector = self._vector(condition) if self.conditional else None
        more = {"iterations": self.iterations} if self.iterations else {}
        if self.kind == "gaussian":
            return GaussianCRF(**more, name="crf")(image, image, vector)
        logits = image * self.param("sharpness", nn.initializers.constant(self.sharpness), ())
        bandwidths = (3.0, self.sharpness, 1.0)
        crf = MeanFieldCRF(self.window or None, bandwidths=bandwidths, **more, name="crf")
        return 2 * crf(logits, logits, vector) - 1

    def _vector(self, condition: Condition) -> Array | None:
        """(B, E): the one-hot label (zeros: it says nothing), or a text as one vector."""
        if condition is None:
            return None
        if not isinstance(condition, Text):
            return jax.nn.one_hot(condition, self.num_classes) if self.num_classes else None
        if condition.sentence is not None:
            return condition.sentence
        tokens, mask = condition.tokens, condition.mask
        if tokens.ndim == 2:
            if not self.vocabulary:
                raise UserError(
                    "A CRF is to see texts, and config.vocabulary is 0: set it to their tokens'."
                )
            tokens = nn.Embed(self.vocabulary, self.width, name="words")(tokens)
        count = jnp.maximum(mask.sum(1, keepdims=True), 1)
        return jnp.sum(tokens * mask[..., None], 1) / count


def around(generator: nn.Module, config: dict[str, Any], common: dict[str, Any]) -> nn.Module:
    """The generator with the field that its section of a config asks for, or as it is.

    Args:
      config: `crf`, None or a kind, and `crf_window`, `crf_iterations`, ..., fields of
        `CRFGenerator`.
      common: what every network is offered; `segments` is how many labels the maps have.

    Raises:
      UserError: an unknown kind or field, or mean field without label maps.
    """
    options = {key.removeprefix("crf_"): value for key, value in config.items() if key != "crf"}
    own = {field.name for field in dataclasses.fields(CRFGenerator)} - {"parent", "name"}
    known = own - {"generator", "kind"}
    for key in options.keys() - known:
        hint = did_you_mean(f"crf_{key}", [f"crf_{name}" for name in known])
        raise UserError(f"config.generator has no field 'crf_{key}'.{hint}")
    kind = config.get("crf")
    if kind in (None, "", "None"):  # as flags write it
        return generator
    if kind not in KINDS:
        raise UserError(f"config.generator.crf is {kind!r}.{did_you_mean(str(kind), KINDS)}")
    if kind == "mean_field" and not common.get("segments"):
        raise UserError(
            "config.generator.crf = 'mean_field' is for label maps (the task segments, with a "
            "config.palette); for images there is 'gaussian'."
        )
    offered = {key: value for key, value in common.items() if key in known}
    return CRFGenerator(generator, kind, **offered | options)
