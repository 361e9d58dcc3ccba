"""The source of shapes: its grammar, its fields in the pipeline, the tasks that take them."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from aigc_jax import config as configs
from aigc_jax.data import configured, pipeline, shapes, sources, tasks
from aigc_jax.errors import UserError


def load(source="shapes:2", size=32, **kwargs):
    return sources.load(source, image_size=size, **kwargs)


def everything(example):
    return dict(example)


def take(count, iterator):
    return list(itertools.islice(iterator, count))


def stream(data, task=everything, **kwargs):
    return pipeline.batches(data, task, **{"batch_size": 8, "seed": 3, **kwargs})


@pytest.mark.parametrize(
    ("source", "split", "name", "count"),
    [
        ("shapes", "train", "shapes:3/train", 2**31 - 1),
        ("shapes:2", "test", "shapes:2/test", 10_000),
        ("shapes:2,textured/novel", "train", "shapes:2,textured/novel", 10_000),
        ("shapes:textured", "novel", "shapes:3,textured/novel", 10_000),
        ("shapes/test", "train", "shapes:3/test", 10_000),
        ("shapes:2", "test[:64]", "shapes:2/test[:64]", 64),
        ("shapes/train[:1000]", "test", "shapes:3/train[:1000]", 1000),
        ("shapes/test[:20000]", "train", "shapes:3/test", 10_000),
    ],
)
def test_grammar(source, split, name, count):
    data = load(source, split=split)
    assert (data.name, data.num_examples, data.class_names) == (name, count, ())
    image, rows = data.read(np.arange(5))
    assert image.shape == (5, 32, 32, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(rows, np.arange(5))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("shapes:4", "cannot read shapes:4: write shapes:N, N from 1 to 3"),
        ("shapes:2textured", "cannot read shapes:2textured"),
        ("shapes:2/tset", "shapes has no split 'tset'. Did you mean 'test'?"),
        ("shapes/al", "shapes has no split 'al'. Did you mean 'all'?"),
        ("shapes/test[:0]", "test[:0] of shapes is empty: take at least 1"),
        ("shapes/test[5:9]", "shapes has no split 'test[5:9]'. Did you mean 'test'?"),
        ("shape:2", "Did you mean 'shapes'?"),
    ],
)
def test_other_grammar(source, line):
    with pytest.raises(UserError) as error:
        load(source)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_sizes():
    with pytest.raises(UserError, match="drawn at 16 to 256 pixels, not 8"):
        load(size=8)
    assert load(size=128).read(np.arange(2))[0].shape == (2, 128, 128, 3)


def test_one_object_has_a_label():
    data = load("shapes:1")
    assert data.class_names == shapes.SHAPES
    batch = next(stream(data, tasks.label))
    assert batch["label"].dtype == np.int32 and batch["label"].max() < 6
    scene = next(stream(data))["scene"]
    np.testing.assert_array_equal(batch["label"], scene[:, 0, 1])


def test_fields_are_those_of_the_images():
    data = load("shapes:3,textured/test")
    batch = next(pipeline.eval_batches(data, everything, batch_size=16))
    rows = np.arange(16)
    np.testing.assert_array_equal(
        np.round((batch["image"] + 1) * 127.5).astype(np.uint8), data.read(rows)[0]
    )
    assert data.fields.keys() <= batch.keys() and "rows" not in batch
    for name, field in data.fields.items():
        value = batch[name]
        assert value.shape == (16, *field.shape) and value.dtype == field.dtype
        if field.dtype is object:
            value = np.array([text.decode() for text in value], object)
        np.testing.assert_array_equal(value, field.function(rows))


def test_only_what_a_task_takes_is_made():
    made = []

    def counted(name, field):
        def function(rows):
            made.append(name)
            return field.function(rows)

        return dataclasses.replace(field, function=function)

    data = load()
    fields = {name: counted(name, field) for name, field in data.fields.items()}
    data = dataclasses.replace(data, fields=fields)
    take(3, stream(data, tasks.segments))
    assert {*made} == {"segments"}
    del made[:]
    take(3, stream(data, tasks.generate))
    assert not made


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_resume_is_exact():
    data = load("shapes:2")
    assert_same(take(5, stream(data))[2:], take(3, stream(data, start=2)))


def test_processes_share_the_batches():
    data = load("shapes:3")
    whole = take(2, stream(data))
    parts = [take(2, stream(data, process_index=k, process_count=2)) for k in range(2)]
    for step in range(2):
        joined = {
            name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]
        }
        assert_same([whole[step]], [joined])
    other = next(stream(data, seed=4))
    assert not np.array_equal(other["image"], whole[0]["image"])


@pytest.mark.parametrize("change", [{"flip": True}, {"turn": True}, {"crop": 24}])
def test_what_would_make_captions_false(change):
    with pytest.raises(UserError, match="tells where things lie"):
        stream(load(), **change)


def config(**values):
    found = configs.default()
    found.image_size, found.batch_size, found.eval.batch_size = 32, 8, 4
    found.data.source = "shapes:2"
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    configs.validate(found)
    return found


@pytest.mark.parametrize("channels", [0, 1])
def test_outlines_and_pictures(channels):
    made = config(task="outlines", channels=channels)
    resolved, batches = configured.training(made)
    assert resolved.channels == (channels or 3)
    batch = next(batches(0))
    assert batch.keys() == {"a", "b", "index"}
    assert batch["a"].shape == batch["b"].shape == (8, 32, 32, channels or 3)
    same = np.abs(batch["a"] - batch["b"]).max(axis=-1) < 0.02
    assert 0.7 < same.mean() < 0.99 and batch["a"].min() >= -1 and batch["a"].max() <= 1
    made.eval.split, made.data.swap = "novel", True
    held = next(iter(configured.held_out(made)))
    truth = np.round((held["b"] + 1) * 127.5)
    data = load("shapes:2/novel", channels=channels or None)
    np.testing.assert_array_equal(truth, data.fields["outline"].function(np.arange(4)))


def test_label_maps():
    batch = next(configured.training(config(task="segments"))[1](0))
    assert batch.keys() == {"image", "segments", "index"}
    assert batch["segments"].dtype == np.int32 and batch["segments"].max() < len(shapes.PALETTE)
    held = configured.held_out(config(task="segments", eval__split="test"))
    assert len(held) == 10_000 and next(iter(held))["segments"].shape == (4, 32, 32)


@pytest.mark.parametrize("task", ["outlines", "segments"])
def test_other_sources_have_no_maps(task):
    with pytest.raises(UserError, match=f"'{task}' needs .* set config.data.source to shapes"):
        next(stream(sources.load("digits", image_size=32), tasks.find(task)))


def test_nothing_is_measured_on_all_of_an_endless_split():
    made = config(task="generate", eval__split="train")
    with pytest.raises(UserError, match=r"shapes:2/train never ends.* set config.eval.split"):
        configured.held_out(made)
    made.eval.split = "test"
    assert len(configured.held_out(made)) == 10_000


def test_a_program_ends_while_its_stream_is_read():
    """The stream's threads wait for an interpreter that waits for them, unless they are ended."""
    code = (
        "from aigc_jax.data import pipeline, sources, tasks\n"
        "data = sources.load('shapes', image_size=64)\n"
        "batches = pipeline.batches(data, tasks.segments, batch_size=256, seed=0)\n"
        "next(batches)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
