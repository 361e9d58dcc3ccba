"""The text encoder: what it may depend on, and PyTorch with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.text_encoder import Transformer

B, T, WIDTH = 3, 7, 16
MASK = np.arange(T)[None] < np.array([[2], [7], [4]])


@pytest.fixture(scope="module")
def encoder():
    module = Transformer(vocabulary=11, length=T, width=WIDTH, depth=2, heads=4)
    variables = module.init(jax.random.key(0), jnp.zeros((B, T), jnp.int32), jnp.array(MASK))
    # Weights of a trained one's size, so that attention says something.
    variables = jax.tree.map(lambda leaf: 10 * leaf, variables)
    return jax.jit(module.apply), variables


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 11, (B, T), dtype=np.int32)


def test_padding_changes_nothing(encoder, tokens):
    apply, variables = encoder
    vector, features = apply(variables, tokens, MASK)
    other = np.where(MASK, tokens, 10 - tokens)
    for before, after in zip((vector, features), apply(variables, other, MASK), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.any(features[~MASK])
    short = apply(variables, tokens[:1, :2], MASK[:1, :2])[0]
    np.testing.assert_allclose(short, vector[:1], rtol=1e-5, atol=1e-5)


def test_vector_is_the_mean_of_the_real_tokens(encoder, tokens):
    vector, features = encoder[0](encoder[1], tokens, MASK)
    expected = np.stack([f[m].mean(0) for f, m in zip(features, MASK, strict=True)])
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)


def test_no_token_is_zero(encoder, tokens):
    vector, features = encoder[0](encoder[1], tokens, np.zeros_like(MASK))
    assert not np.any(vector)
    assert not np.any(features)


def test_order_of_the_words_counts(encoder, tokens):
    tokens[1] = [2, 3, 4, 5, 6, 7, 8]
    swapped = tokens.copy()
    swapped[1, [2, 6]] = tokens[1, [6, 2]]
    one, two = (encoder[0](encoder[1], t, MASK)[0] for t in (tokens, swapped))
    assert np.abs(one[1] - two[1]).max() > 0.01
    np.testing.assert_array_equal(one[2], two[2])


def test_every_parameter_learns(encoder, tokens):
    """But the key's bias, which the softmax cancels."""
    apply, variables = encoder

    def loss(variables):
        vector, features = apply(variables, tokens, MASK)
        return jnp.sum(jnp.sin(3 * vector)) + jnp.sum(jnp.sin(features))

    gradients = jax.jit(jax.grad(loss))(variables)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))


def test_bfloat16_returns_float32(tokens):
    module = Transformer(11, T, WIDTH, 1, 2, jnp.bfloat16)
    outputs, _ = module.init_with_output(jax.random.key(0), tokens, MASK)
    assert {out.dtype for out in outputs} == {jnp.dtype("float32")}


def test_longer_than_it_can_be(encoder):
    module = Transformer(11, T, WIDTH)
    with pytest.raises(UserError, match=r"8 tokens for a text encoder of 7"):
        module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool))


def test_equals_pytorch(encoder, tokens):
    """torch.nn.TransformerEncoder, pre-LN, with the same weights."""
    torch = pytest.importorskip("torch")
    params = encoder[1]["params"]
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, 4, 4 * WIDTH, 0, lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        batch_first=True, norm_first=True,
    )  # fmt: skip
    norm = torch.nn.LayerNorm(WIDTH)
    twin = torch.nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    for i, block in enumerate(twin.layers):
        block.load_state_dict(_theirs(params[f"layer_{i}"], torch))
    norm.load_state_dict(_norm(params["norm"], "", torch))
    embedded = params["token"]["embedding"][tokens] + params["position"]["embedding"][None]
    with torch.no_grad():
        expected = twin(
            torch.tensor(np.array(embedded)), src_key_padding_mask=torch.tensor(~MASK)
        ).numpy()
    _, features = encoder[0](encoder[1], tokens, MASK)
    np.testing.assert_allclose(features[MASK], expected[MASK], rtol=1e-4, atol=1e-4)


def _theirs(block, torch):
    attention = block["attention"]
    arrays = {
        "self_attn.in_proj_weight": attention["qkv"]["kernel"].T,
        "self_attn.in_proj_bias": attention["qkv"]["bias"],
    }
    dense = {"self_attn.out_proj": attention["out"]}
    dense |= {"linear1": block["expand"], "linear2": block["contract"]}
    for name, leaves in dense.items():
        arrays |= {f"{name}.weight": leaves["kernel"].T, f"{name}.bias": leaves["bias"]}
    tensors = {key: torch.tensor(np.array(array)) for key, array in arrays.items()}
    tensors |= _norm(block["norm1"], "norm1.", torch)
    return tensors | _norm(block["norm2"], "norm2.", torch)


def _norm(leaves, prefix, torch):
    names = {"weight": "scale", "bias": "bias"}
    return {f"{prefix}{k}": torch.tensor(np.array(leaves[v])) for k, v in names.items()}
