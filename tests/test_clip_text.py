"""CLIP's text tower: transformers' in PyTorch with the same small random weights."""

import inception_random
import jax
import numpy as np
import pytest

from aigc_jax import torch_weights
from aigc_jax.errors import UserError
from aigc_jax.models import clip_text

END, LENGTH = 49, 12
COUNTS = np.array([12, 5, 2])
MASK = np.arange(LENGTH)[None] < COUNTS[:, None]


def captions():
    """Tokens that end once, with whatever behind."""
    tokens = np.random.default_rng(0).integers(3, END, MASK.shape, dtype=np.int32)
    tokens[np.arange(3), COUNTS - 1] = END
    return tokens


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers(torch):
    inception_random.allow_torchvision()
    return pytest.importorskip("transformers")


def make(transformers, torch, activation="quick_gelu", cls="CLIPTextModelWithProjection"):
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=20,
        hidden_act=activation, bos_token_id=1, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    twin = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return twin


@pytest.fixture(scope="module")
def twin(transformers, torch):
    return make(transformers, torch)


def arrays_of(twin):
    return {name: tensor.numpy() for name, tensor in twin.state_dict().items()}


def run(arrays, **options):
    module, variables = clip_text.from_torch(arrays, heads=4, **options)
    return jax.jit(module.apply)(variables, captions(), MASK)


def theirs(torch, twin):
    with torch.no_grad():
        out = twin(torch.tensor(captions()).long(), torch.tensor(MASK).long())
        vector = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
        vector = torch.nn.functional.normalize(vector).numpy()
        return vector, np.where(MASK[..., None], out.last_hidden_state.numpy(), 0)


def close(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def openai(arrays):
    """transformers' names and layout -> those of openai/CLIP, clip/model.py."""
    names = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.encoder.layers": "transformer.resblocks",
        "text_model.final_layer_norm": "ln_final",
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    renamed = {}
    for name, array in arrays.items():
        for theirs, old in names.items():
            name = name.replace(theirs, old)
        renamed[name] = array
    for i in range(2):
        layer = f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            parts = [renamed.pop(f"{layer}.self_attn.{part}_proj.{leaf}") for part in "qkv"]
            renamed[f"{layer}.attn.in_proj_{leaf}"] = np.concatenate(parts)
    renamed["text_projection"] = renamed.pop("text_projection.weight").T
    return renamed


def test_equals_transformers(torch, twin, tmp_path):
    """Through the file that transformers saves."""
    twin.save_pretrained(tmp_path)
    close(run(torch_weights.load(tmp_path / "model.safetensors")), theirs(torch, twin))


def test_names_of_openai(torch, twin):
    arrays = openai(arrays_of(twin))
    arrays["visual.conv1.weight"] = np.zeros((4, 3, 2, 2), np.float32)
    arrays["logit_scale"] = np.zeros((), np.float32)
    close(run(arrays), theirs(torch, twin))


def test_gelu(transformers, torch):
    twin = make(transformers, torch, "gelu")
    close(run(arrays_of(twin), activation="gelu"), theirs(torch, twin))
    with pytest.raises(UserError, match=r"no activation 'gellu'. Did you mean 'gelu'"):
        run(arrays_of(twin), activation="gellu")


def test_without_a_projection(transformers, torch):
    twin = make(transformers, torch, cls="CLIPTextModel")
    vector, _ = ours = run(arrays_of(twin))
    assert vector.shape == (3, 32)
    close(ours, theirs(torch, twin))


def test_what_follows_the_end_changes_nothing(twin):
    module, variables = clip_text.from_torch(arrays_of(twin), heads=4)
    apply, tokens = jax.jit(module.apply), captions()
    for a, b in zip(
        apply(variables, tokens, MASK),
        apply(variables, np.where(MASK, tokens, 7), MASK),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_another_network(twin):
    with pytest.raises(UserError, match=r"CLIP's text tower: embeddings.token_embedding.weight"):
        clip_text.from_torch({"conv.weight": np.zeros((1, 1))})
    arrays = arrays_of(twin)
    arrays["text_projection.weight"] = np.zeros((20, 31), np.float32)
    with pytest.raises(UserError, match=r"projection.kernel is \(31, 20\), not \(32, 20\)"):
        clip_text.from_torch(arrays, heads=4)
    arrays = {name: array for name, array in arrays.items() if "layers" not in name}
    with pytest.raises(UserError, match=r"it has no encoder.layers.0"):
        clip_text.from_torch(arrays)
