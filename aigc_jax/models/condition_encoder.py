"""What a condition becomes before a network uses it: a vector, and of a text its tokens' features.

Labels are embedded (their row `num_classes` says nothing); texts of tokens go through a transformer
that is trained with the network, those of a frozen encoder through a linear layer.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Condition, Encoded, Text, nothing
from aigc_jax.models.text_encoder import Transformer


class ConditionEncoder(nn.Module):
    """Labels or texts -> vectors and features.

    Attributes:
      num_classes: of labels.
      vocabulary: of tokens. UserError if there is a text of tokens and it is 0.
      width: W of the vectors and features.
      depth: layers of the transformer.
      dtype: of the computation.
    """

    num_classes: int = 0
    vocabulary: int = 0
    width: int = 128
    depth: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, condition: Condition, guidance: float = 0.0) -> Encoded:
        """Labels (B,) int32 in [0, num_classes], or a `Text`, encoded; None: B is unknown, None.

        Args:
          guidance: how far the encoding goes on, away from the one that says nothing, as
            classifier-free guidance does with scores (Ho & Salimans 2022, eq. 6). 0: it is as it
            is; -1: it says nothing.
        """
        if condition is None:
            raise ValueError("This network is conditional: pass a label or a text.")
        encode = self._of_text(condition) if isinstance(condition, Text) else self._of_labels()
        encoded = encode(condition)
        if not guidance:
            return encoded
        empty = encode(nothing(condition, self.num_classes))
        vector = encoded.vector + guidance * (encoded.vector - empty.vector)
        if encoded.features is None:
            return Encoded(vector)
        # The empty text's tokens are all alike; of an encoder that is trained their mean.
        frozen = isinstance(condition, Text) and condition.sentence is not None
        token = empty.features[:, :1] if frozen else empty.vector[:, None]
        features = encoded.features + guidance * (encoded.features - token)
        return Encoded(vector, features, encoded.mask)

    def _of_labels(self) -> Callable[[Condition], Encoded]:
        embed = nn.Embed(self.num_classes + 1, self.width, dtype=self.dtype, name="label")
        return lambda label: Encoded(embed(label))

    def _of_text(self, text: Text) -> Callable[[Text], Encoded]:
        if text.sentence is None:
            return self._of_tokens(text.tokens.shape[1])
        sentence = nn.Dense(self.width, dtype=self.dtype, name="sentence")
        if not text.tokens.shape[1]:
            return lambda text: Encoded(sentence(text.sentence))
        token = nn.Dense(self.width, dtype=self.dtype, name="token")
        return lambda text: Encoded(sentence(text.sentence), token(text.tokens), text.mask)

    def _of_tokens(self, length: int) -> Callable[[Text], Encoded]:
        if not self.vocabulary:
            raise UserError("There are texts, and config.vocabulary is 0: set it to their tokens'.")
        transformer = Transformer(
            vocabulary=self.vocabulary,
            length=length,
            width=self.width,
            depth=self.depth,
            dtype=self.dtype,
            name="text",
        )

        def encode(text: Text) -> Encoded:
            vector, features = transformer(text.tokens, text.mask)
            return Encoded(vector, features, text.mask)

        return encode


def check_guidance(dropout: float) -> None:
    """UserError for networks that have not learned what it is to be told nothing."""
    if not dropout:
        raise UserError(
            "--guidance goes away from what is made of no condition, which this run has not seen: "
            "train with config.conditioning.dropout, e.g. 0.1."
        )


def guided(network: nn.Module, guidance: float) -> nn.Module:
    """The network, or what it wraps as `generator`, with that guidance.

    Raises:
      UserError: it has none.
    """
    if hasattr(network, "guidance"):
        return network.clone(guidance=guidance)
    if hasattr(network, "generator"):
        return network.clone(generator=guided(network.generator, guidance))
    name = type(network).__module__.rpartition(".")[2]
    raise UserError(f"--guidance: the network {name!r} has none; fusion_gan and fusion_vae have.")
