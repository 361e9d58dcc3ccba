"""Captions of image folders, by themselves and through the stream."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import captions, pipeline, sources
from aigc_jax.errors import UserError

NAMES = ["a.png", "b.png", "sub/c.png", "sub/d.jpg"]
WORDS = ["red", "green", "blue", "grey"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(folder, lines):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")


def caption(folder):
    data = sources.load(f"folder:{folder}", split="all", image_size=8)
    return data.fields["caption"].function(np.arange(data.num_examples)).tolist()


def beside(folder, texts=WORDS):
    for name, words in zip(NAMES, texts, strict=True):
        (folder / name).with_suffix(".txt").write_text(words, "utf-8")


def test_text_beside_each_image(folder):
    beside(folder, ["red", "grün\n\n  two  words \n", "\ufeffblue", "grey\r\n"])
    assert caption(folder) == ["red", "grün\ntwo words", "blue", "grey"]


def test_metadata(folder):
    beside(folder)
    texts = ["one", ["two", "deux\nzwei"], "three", "four"]
    lines = [{"file_name": n, "text": t, "x": 1} for n, t in zip(NAMES, texts, strict=True)]
    write(folder, lines[::-1])
    assert caption(folder) == ["one", "two\ndeux zwei", "three", "four"]


def test_without_captions(folder):
    (folder / "readme.txt").write_text("not a caption")
    assert sources.load(f"folder:{folder}", split="all", image_size=8).fields == {}


def test_image_without_a_caption(folder, caplog):
    beside(folder)
    (folder / "b.txt").unlink()
    (folder / "sub/c.txt").write_text("\n")
    with caplog.at_level(logging.WARNING):
        assert caption(folder) == ["red", "", "", "grey"]
    assert "2 of 4 images have no caption" in caplog.text
    assert "b.png" in caplog.text


def test_splits_have_their_own(tmp_path):
    for half in ("train", "test"):
        (tmp_path / half).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / half / "a.png")
        write(tmp_path / half, [{"file_name": "a.png", "text": half}])
    for half in ("train", "test"):
        data = sources.load(f"folder:{tmp_path}", split=half, image_size=8)
        assert data.fields["caption"].function(np.array([0])).tolist() == [half]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata.jsonl:2: not of the form"),
        ('{"file_name": "a.png"}', r"metadata.jsonl:2: not of the form"),
        ('"a.png"', r"metadata.jsonl:2: not of the form"),
        ('{"file_name": "a.png", "text": 3}', r"metadata.jsonl:2: text is neither"),
    ],
)
def test_wrong_metadata(folder, line, message):
    good = json.dumps({"file_name": "b.png", "text": "x"})
    (folder / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=message):
        caption(folder)


def test_nothing_of_the_images(folder):
    write(folder, [{"file_name": "elsewhere.png", "text": "x"}])
    with pytest.raises(UserError, match=r"none of the 4 images has a caption"):
        caption(folder)


def test_not_utf8(folder):
    beside(folder)
    (folder / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"a.txt cannot be read as UTF-8"):
        caption(folder)


def test_stream_pairs_images_with_captions(folder):
    """Decoded in memory and read from files, where an unreadable one gives way to the next."""
    beside(folder)
    for cache_bytes in (1 << 20, 0):
        data = sources.load(f"folder:{folder}", split="all", image_size=8, cache_bytes=cache_bytes)
        assert (data.read is not None) == (cache_bytes == 0)

        def task(example):
            return {"image": example["image"], "caption": example["caption"]}

        stream = pipeline.batches(data, task, batch_size=8, seed=0)
        for batch in (next(stream), next(stream)):
            red = np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5 / 60).astype(int)
            assert [c.decode() for c in batch["caption"]] == [WORDS[i] for i in red]


def test_one_of_several_is_drawn():
    import tensorflow as tf

    seeds = np.random.default_rng(0).integers(-(2**31), 2**31, (3000, 2)).astype(np.int32)
    for text in ("a\nb\nc", "a", ""):
        drawn = captions.one_of(tf.constant([text] * len(seeds)), tf.constant(seeds)).numpy()
        lines = text.encode().split(b"\n")
        counts = [np.mean(drawn == line) for line in lines]
        np.testing.assert_allclose(counts, 1 / len(lines), atol=0.05)
