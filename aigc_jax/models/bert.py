"""BERT's encoder (Devlin et al. 2019), with the sentence embedding of Sentence-BERT on it.

Sentence embedding: the mean of the last layer over the real tokens, of length one (Reimers and
Gurevych 2019, section 3, and what sentence-transformers does for all-MiniLM-L6-v2).
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from aigc_jax.layers.attention import SelfAttention
from aigc_jax.models._torch_transformer import Weights
from aigc_jax.models.text_encoder import mean, seen
from aigc_jax.torch_weights import strip_prefix
from aigc_jax.types import Array, PyTree

_norm = partial(nn.LayerNorm, epsilon=1e-12)


class Layer(nn.Module):
    """Post-LN block: self-attention, then an MLP with the exact GELU.

    Attributes:
      width, heads, hidden: as of `Bert`.
    """

    width: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """x (B, T, width), mask as of `attend` -> (B, T, width)."""
        y = SelfAttention(self.width, self.heads, name="attention")(x, mask)
        x = _norm(name="norm1")(x + y)
        y = nn.gelu(nn.Dense(self.hidden, name="expand")(x), approximate=False)
        return _norm(name="norm2")(x + nn.Dense(self.width, name="contract")(y))


class Bert(nn.Module):
    """Token ids -> a sentence embedding, and the last layer; all tokens are of type 0.

    Attributes:
      vocabulary: how many ids there are.
      length: the most tokens.
      width: E; `heads` must divide it (UserError).
      depth: layers.
      heads: of the attention.
      hidden: the MLP's width.
    """

    vocabulary: int = 30522
    length: int = 512
    width: int = 384
    depth: int = 6
    heads: int = 12
    hidden: int = 1536

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
        """Reads sentences.

        Args:
          tokens: (B, T) int32 in [0, vocabulary), T at most `length`.
          mask: (B, T) bool, True for a real token, of which each sentence has one or more.

        Returns:
          (B, width) float32 of length one, and (B, T, width) float32, 0 where the mask is False.
        """
        x = nn.Embed(self.vocabulary, self.width, name="word")(tokens)
        positions = jnp.arange(tokens.shape[1])[None]
        x = x + nn.Embed(self.length, self.width, name="position")(positions)
        kind = self.param("type", nn.initializers.normal(0.02), (self.width,))
        x = _norm(name="norm")(x + kind.reshape(1, 1, -1))
        for i in range(self.depth):
            x = Layer(self.width, self.heads, self.hidden, name=f"layer_{i}")(x, seen(mask))
        return unit(mean(x, mask)), x * mask[..., None]


def unit(x: Array) -> Array:
    """(B, E) divided by their lengths."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def from_torch(arrays: Mapping[str, np.ndarray], heads: int = 0) -> tuple[Bert, PyTree]:
    """The encoder that a weight file is of, and its variables.

    Args:
      arrays: of the file, as `aigc_jax.torch_weights.load` gives them, of any size, with names as
        transformers' BertModel or a model with a head on it ("bert.") has. The pooler and heads of
        other tasks are ignored.
      heads: of the attention, which shapes don't tell; 0: what published models of this width
        have, 12 for 312, 384 and 768, and width / 64 for others.

    Returns:
      `(module, variables)`: `module.apply(variables, tokens, mask)`.

    Raises:
      UserError: of another network; the line names what is missing or of another shape.
    """
    for prefix in ("module.", "bert."):
        arrays = strip_prefix(arrays, prefix)
    weights = Weights(_renamed(arrays), "BERT")
    words = weights.table("embeddings.word_embeddings.weight")
    vocabulary, width = words.shape
    module = Bert(
        vocabulary,
        len(weights.table("embeddings.position_embeddings.weight")),
        width,
        weights.depth("encoder.layer."),
        heads or (12 if width in (312, 384) else max(width // 64, 1)),
        len(weights["encoder.layer.0.intermediate.dense.bias"]),
    )
    params = {
        "word": {"embedding": words},
        "position": {"embedding": weights["embeddings.position_embeddings.weight"]},
        "type": weights.table("embeddings.token_type_embeddings.weight")[0],
        "norm": weights.norm("embeddings.LayerNorm"),
    }
    for i in range(module.depth):
        params[f"layer_{i}"] = _layer(weights, f"encoder.layer.{i}")
    return module, weights.variables(module, params)


def _renamed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Files of TensorFlow's days call a norm's scale gamma and its bias beta."""
    old = {".gamma": ".weight", ".beta": ".bias"}
    return {
        next((key.removesuffix(a) + b for a, b in old.items() if key.endswith(a)), key): array
        for key, array in arrays.items()
    }


def _layer(weights: Weights, name: str) -> PyTree:
    attention = f"{name}.attention"
    projections = [f"{attention}.self.{part}" for part in ("query", "key", "value")]
    return {
        "attention": {
            "qkv": weights.dense(*projections),
            "out": weights.dense(f"{attention}.output.dense"),
        },
        "norm1": weights.norm(f"{attention}.output.LayerNorm"),
        "expand": weights.dense(f"{name}.intermediate.dense"),
        "contract": weights.dense(f"{name}.output.dense"),
        "norm2": weights.norm(f"{name}.output.LayerNorm"),
    }
