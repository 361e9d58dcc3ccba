"""CLIP's text tower (Radford et al. 2021): a causal transformer, read where the caption ends."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.models._torch_transformer import Weights
from aigc_jax.models.bert import unit
from aigc_jax.models.text_encoder import Block, seen
from aigc_jax.torch_weights import strip_prefix
from aigc_jax.types import Array, PyTree


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), of OpenAI's weights."""
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu(x: Array) -> Array:
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": _gelu}


class ClipText(nn.Module):
    """Token ids -> the caption's embedding in the space of CLIP's images, and the last layer.

    Attributes:
      vocabulary: how many ids there are.
      length: the most tokens.
      width: of the layers; `heads` must divide it (UserError).
      depth: layers.
      heads: of the attention.
      hidden: the MLP's width.
      projected: E, of the embedding; 0: `width`, without a projection.
      activation: "quick_gelu" (OpenAI) or "gelu" (most of OpenCLIP's).
    """

    vocabulary: int = 49408
    length: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    hidden: int = 2048
    projected: int = 512
    activation: str = "quick_gelu"

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
        """Reads captions.

        Args:
          tokens: (B, T) int32 in [0, vocabulary), T at most `length`; the last real one ends the
            caption.
          mask: (B, T) bool, True for the real tokens, which come first.

        Returns:
          (B, E) float32 of length one, and (B, T, width) float32, the last layer after its norm, 0
          where the mask is False.
        """
        x = nn.Embed(self.vocabulary, self.width, name="token")(tokens)
        positions = jnp.arange(tokens.shape[1])[None]
        x = x + nn.Embed(self.length, self.width, name="position")(positions)
        for i in range(self.depth):
            block = Block(
                self.width,
                self.heads,
                self.hidden,
                causal=True,
                activation=ACTIVATIONS[self.activation],
                name=f"layer_{i}",
            )
            x = block(x, seen(mask))
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x)
        end = jnp.maximum(mask.sum(1) - 1, 0)
        vector = jnp.take_along_axis(x, end[:, None, None], 1)[:, 0]
        if self.projected:
            vector = nn.Dense(self.projected, use_bias=False, name="projection")(vector)
        return unit(vector), x * mask[..., None]


def from_torch(
    arrays: Mapping[str, np.ndarray], heads: int = 0, activation: str = "quick_gelu"
) -> tuple[ClipText, PyTree]:
    """The text tower that a weight file is of, and its variables.

    Args:
      arrays: of the file, as `aigc_jax.torch_weights.load` gives them, of any size, with OpenAI's
        names or transformers'. An image tower beside it is ignored. Without a projection the
        embedding is the last layer's.
      heads: of the attention, which shapes don't tell; 0: width / 64, as of every CLIP of OpenAI.
      activation: as of `ClipText`.

    Returns:
      `(module, variables)`: `module.apply(variables, tokens, mask)`.

    Raises:
      UserError: of another network; the line names what is missing or of another shape. An
        unknown activation.
    """
    if activation not in ACTIVATIONS:
        hint = did_you_mean(activation, ACTIVATIONS)
        raise UserError(f"CLIP's text tower has no activation {activation!r}.{hint}")
    arrays = strip_prefix(arrays, "module.")
    openai = "positional_embedding" in arrays
    weights = Weights(
        arrays if openai else strip_prefix(arrays, "text_model."), "CLIP's text tower"
    )
    params = (_openai if openai else _transformers)(weights)
    words, positions = params["token"]["embedding"], params["position"]["embedding"]
    projection = params.get("projection")
    module = ClipText(
        vocabulary=len(words),
        length=len(positions),
        width=words.shape[1],
        depth=sum(name.startswith("layer_") for name in params),
        heads=heads or max(words.shape[1] // 64, 1),
        hidden=len(params["layer_0"]["expand"]["bias"]),
        projected=projection["kernel"].shape[1] if projection else 0,
        activation=activation,
    )
    return module, weights.variables(module, params)


def _openai(weights: Weights) -> PyTree:
    """Names of openai/CLIP, clip/model.py."""
    names = {"attention": "attn", "norm1": "ln_1", "norm2": "ln_2"}
    names |= {"expand": "mlp.c_fc", "contract": "mlp.c_proj"}
    params = {
        "token": {"embedding": weights.table("token_embedding.weight")},
        "position": {"embedding": weights.table("positional_embedding")},
        "norm": weights.norm("ln_final"),
    }
    for i in range(weights.depth("transformer.resblocks.")):
        layer = f"transformer.resblocks.{i}"
        qkv = {
            "kernel": weights[f"{layer}.attn.in_proj_weight"].T,
            "bias": weights[f"{layer}.attn.in_proj_bias"],
        }
        params[f"layer_{i}"] = _layer(weights, layer, names, qkv)
    if "text_projection" in weights.arrays:
        params["projection"] = {"kernel": weights["text_projection"]}
    return params


def _transformers(weights: Weights) -> PyTree:
    """Names of transformers' CLIPTextModelWithProjection, less "text_model."."""
    names = {"attention": "self_attn", "norm1": "layer_norm1", "norm2": "layer_norm2"}
    names |= {"expand": "mlp.fc1", "contract": "mlp.fc2"}
    params = {
        "token": {"embedding": weights.table("embeddings.token_embedding.weight")},
        "position": {"embedding": weights.table("embeddings.position_embedding.weight")},
        "norm": weights.norm("final_layer_norm"),
    }
    for i in range(weights.depth("encoder.layers.")):
        layer = f"encoder.layers.{i}"
        qkv = weights.dense(*[f"{layer}.self_attn.{part}_proj" for part in "qkv"])
        params[f"layer_{i}"] = _layer(weights, layer, names, qkv)
    if "text_projection.weight" in weights.arrays:
        params["projection"] = {"kernel": weights["text_projection.weight"].T}
    return params


def _layer(weights: Weights, layer: str, names: Mapping[str, str], qkv: PyTree) -> PyTree:
    """One layer, of the names that differ between the two."""
    return {
        "norm1": weights.norm(f"{layer}.{names['norm1']}"),
        "attention": {"qkv": qkv, "out": weights.dense(f"{layer}.{names['attention']}.out_proj")},
        "norm2": weights.norm(f"{layer}.{names['norm2']}"),
        "expand": weights.dense(f"{layer}.{names['expand']}"),
        "contract": weights.dense(f"{layer}.{names['contract']}"),
    }
