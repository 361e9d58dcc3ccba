"""The stream: a function of the seed and the step, the same for any number of processes."""

import collections
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aigc_jax.data import pipeline, sources, tasks
from aigc_jax.data.dataset import Dataset
from aigc_jax.errors import UserError

COUNT = 50
KINDS = ["memory", "files", "records"]


def pictures(count, size=8, seed=0):
    """Smooth colour pictures, (count, size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    blur = ImageFilter.GaussianBlur(1)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in noise])


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """50 labelled pictures in TFDS's own format."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")
    examples = {"image": pictures(COUNT), "label": np.arange(COUNT) % 10}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        data_dir=root,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(examples)},
    )
    return str(root)


@pytest.fixture(scope="module", params=KINDS)
def dataset(request, tfds_folder, tmp_path_factory):
    """The same 50 labelled pictures in each of the three forms."""
    if request.param == "files":
        root = tmp_path_factory.mktemp("files")
        for i, image in enumerate(pictures(COUNT)):
            (root / str(i % 10)).mkdir(exist_ok=True)
            Image.fromarray(image).save(root / str(i % 10) / f"{i:03}.png")
        return sources.load(f"folder:{root}", image_size=8, cache_bytes=0)
    cache_bytes = 2 << 30 if request.param == "memory" else 0
    return sources.load("tfds:tiny", data_dir=tfds_folder, image_size=8, cache_bytes=cache_bytes)


def take(count, iterator):
    return list(itertools.islice(iterator, count))


def stream(dataset, task=tasks.label, batch_size=8, seed=3, **kwargs):
    return pipeline.batches(dataset, task, batch_size=batch_size, seed=seed, **kwargs)


def joined(batches, field):
    return np.concatenate([batch[field] for batch in batches])


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def which(images):
    """The rows of `pictures` that the images are."""
    pixels = np.round((images + 1) * 127.5).astype(np.uint8).reshape(len(images), -1)
    row = {image.tobytes(): i for i, image in enumerate(pictures(COUNT))}
    return np.array([row[image.tobytes()] for image in pixels])


def test_three_forms(dataset):
    forms = [dataset.images is not None, dataset.read is not None, dataset.stream is not None]
    assert sum(forms) == 1
    assert (dataset.num_examples, dataset.num_classes, dataset.shape) == (COUNT, 10, (8, 8, 3))


def test_fields(dataset):
    for batch in take(8, stream(dataset)):
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            "image": ((8, 8, 8, 3), np.float32),
            "label": ((8,), np.int32),
            "index": ((8,), np.int32),
        }
        np.testing.assert_array_equal(batch["label"], which(batch["image"]) % 10)
    assert batch["index"][0] == 7 * 8


def test_an_epoch_is_a_permutation_and_the_next_another(dataset):
    rows = which(joined(take(25, stream(dataset, batch_size=10)), "image")).reshape(5, COUNT)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(COUNT), (5, 1)))
    assert len({tuple(epoch) for epoch in rows}) == 5
    assert not any((epoch == np.arange(COUNT)).all() for epoch in rows)


def test_the_seed_decides(dataset):
    first = take(9, stream(dataset, flip=True))
    assert_same(first, take(9, stream(dataset, flip=True)))
    other = take(9, stream(dataset, flip=True, seed=4))
    assert not np.array_equal(joined(first, "image"), joined(other, "image"))


@pytest.mark.parametrize("start", [1, 6, 7, 30])  # within, at and beyond the first epoch
def test_start_is_skip(dataset, start):
    whole = take(start + 4, stream(dataset, flip=True))
    assert_same(whole[start:], take(4, stream(dataset, flip=True, start=start)))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_are_one(dataset, processes):
    parts = [
        take(9, stream(dataset, flip=True, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    for whole, *shares in zip(take(9, stream(dataset, flip=True)), *parts, strict=True):
        for key in whole:
            np.testing.assert_array_equal(whole[key], np.concatenate([s[key] for s in shares]))


def test_order_of_the_source_and_one_epoch(dataset):
    batches = take(100, stream(dataset, shuffle=False, repeat=False))
    assert len(batches) == COUNT // 8
    np.testing.assert_array_equal(joined(batches, "index"), np.arange(48))
    expected = np.arange(COUNT) if dataset.read is None else np.arange(COUNT).reshape(5, 10).T
    np.testing.assert_array_equal(which(joined(batches, "image")), expected.ravel()[:48])


def test_eval_is_one_pass_padded(dataset):
    batches = list(pipeline.eval_batches(dataset, tasks.label, batch_size=16))
    assert [len(batch["valid"]) for batch in batches] == [16] * 4
    valid = joined(batches, "valid")
    assert valid.dtype == np.float32
    np.testing.assert_array_equal(valid, np.arange(64) < COUNT)
    rows = which(joined(batches, "image"))
    np.testing.assert_array_equal(np.sort(rows[valid == 1]), np.arange(COUNT))
    shares = [
        list(pipeline.eval_batches(
            dataset, tasks.label, batch_size=16, process_index=i, process_count=2))
        for i in range(2)
    ]  # fmt: skip
    for whole, *parts in zip(batches, *shares, strict=True):
        for key in whole:
            np.testing.assert_array_equal(whole[key], np.concatenate([p[key] for p in parts]))


def test_broken_file_is_replaced_and_many_are_an_error(tmp_path):
    for i, image in enumerate(pictures(200)):
        Image.fromarray(image).save(tmp_path / f"{i:03}.png")
    data = sources.load(f"folder:{tmp_path}", image_size=8, cache_bytes=0)
    assert data.read is not None
    for i in range(3):  # after the check of their headers; as many as the error names
        (tmp_path / f"{i:03}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of the 200 files .* more than 1%"):
        take(25, stream(data, tasks.generate))


# --- pixels, flips and the order at a real size ---


def in_memory(images, labels=None):
    classes = () if labels is None else tuple(map(str, range(labels.max() + 1)))
    return Dataset(
        name="test", num_examples=len(images), image_size=images.shape[1],
        channels=images.shape[-1], class_names=classes, images=images, labels=labels,
    )  # fmt: skip


def test_every_grey_level_survives():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    (batch,) = take(1, stream(in_memory(levels), tasks.generate, batch_size=1))
    assert batch["image"].min() == -1 and batch["image"].max() == 1
    np.testing.assert_allclose(batch["image"], levels / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(np.round((batch["image"] + 1) * 127.5), levels)


def test_flips_are_fair_and_independent():
    sided = np.zeros((1000, 2, 2, 1), np.uint8)
    sided[:, :, 1] = 255
    images = joined(take(80, stream(in_memory(sided), tasks.generate, 250, flip=True)), "image")
    np.testing.assert_array_equal(np.sort(images, axis=2), np.sort(images[:1], axis=2)[:1].repeat(
        20_000, axis=0))  # fmt: skip
    flipped = images[:, 0, 0, 0] > 0
    # 20,000 fair and independent coins: standard error 0.0035 of the share, 0.007 of each r.
    assert abs(flipped.mean() - 0.5) < 0.015
    for lag in (1, 2, 8, 250, 1000):
        assert abs(np.corrcoef(flipped[lag:], flipped[:-lag])[0, 1]) < 0.03
    other = take(80, stream(in_memory(sided), tasks.generate, 250, flip=True, seed=4))
    other = joined(other, "image")[:, 0, 0, 0] > 0
    assert abs(np.corrcoef(flipped, other)[0, 1]) < 0.03


def test_flip_mirrors_left_to_right():
    image = pictures(1)
    seen = joined(take(20, stream(in_memory(image), tasks.generate, 1, flip=True)), "image")
    plain = image[0] / np.float32(127.5) - 1
    kinds = {"plain" if np.allclose(x, plain) else "flipped" * np.allclose(x, plain[:, ::-1])
             for x in seen}  # fmt: skip
    assert kinds == {"plain", "flipped"}


def test_orders_of_epochs_and_seeds_are_unrelated():
    """The permutation of TensorFlow's own index_shuffle fails here (0.9 between epochs)."""
    count = 60_000
    numbers = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(count, 2, 2, 1)

    def rows(seed):
        batches = take(3 * count // 2000, stream(in_memory(numbers), tasks.generate, 2000, seed))
        pixels = np.round((joined(batches, "image") + 1) * 127.5).astype(np.uint8)
        return pixels.reshape(-1, 4).copy().view(np.uint32).reshape(3, count).astype(np.int64)

    orders = np.concatenate([rows(0), rows(1)])
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    between = np.corrcoef(orders) - np.eye(6)
    assert np.abs(between).max() < 0.025  # standard error 0.004
    for lag in (1, 2, 4, 8, 64):
        within = [np.corrcoef(order[lag:], order[:-lag])[0, 1] for order in orders]
        assert np.abs(within).max() < 0.025


def test_index_wraps_and_resumes_far_away():
    data = in_memory(pictures(COUNT))
    start = 2**31 // 8 - 1
    one, two = take(2, stream(data, tasks.generate, start=start))
    np.testing.assert_array_equal(one["index"], 2**31 - 8 + np.arange(8))
    np.testing.assert_array_equal(two["index"], np.arange(8))


def test_each_example_has_a_seed_of_its_own():
    def task(example):
        return {"image": example["image"], "mine": example["seed"]}

    data = in_memory(pictures(COUNT))
    seeds = joined(take(20, stream(data, task)), "mine")
    assert seeds.shape == (160, 2) and seeds.dtype == np.int32
    assert len(np.unique(seeds, axis=0)) == 160
    assert_same(take(2, stream(data, task, start=5)), take(7, stream(data, task))[5:])


# --- crops, and two domains ---


def levels(images):
    return np.round((images + 1) * 127.5).astype(int)


def test_turns_are_fair_and_with_flips_all_eight():
    """An image of four corners of its own is seen in all the ways a square can lie."""
    image = np.uint8([[0, 50], [100, 150]]).reshape(1, 2, 2, 1)
    stream_ = stream(in_memory(image), tasks.generate, 100, flip=True, turn=True)
    seen = levels_of(joined(take(20, stream_), "image"))[..., 0]
    plain = image[0, ..., 0]
    ways = [np.rot90(x, k) for x in (plain, plain[:, ::-1]) for k in range(4)]
    counts = [(seen == way).all((1, 2)).sum() for way in ways]
    assert sum(counts) == 2000 and min(counts) > 190 and max(counts) < 310
    turned = stream(in_memory(image), tasks.generate, 100, turn=True)
    seen = levels_of(joined(take(20, turned), "image"))[..., 0]
    counts = [(seen == way).all((1, 2)).sum() for way in ways]
    assert min(counts[:4]) > 420 and sum(counts[4:]) == 0


def levels_of(images):
    return np.round((images + 1) * 127.5).astype(np.uint8)


def test_crops_are_uniform_and_independent_of_flips():
    """32 outcomes, each of 1,000 expected: chi-square of 31 degrees, 61 at one in a thousand."""
    image = np.arange(100, dtype=np.uint8).reshape(1, 10, 10, 1)
    batches = take(64, stream(in_memory(image), tasks.generate, 500, crop=7, flip=True))
    found = levels(joined(batches, "image"))[..., 0]
    flipped = found[:, 0, 0] > found[:, 0, 1]
    found[flipped] = found[flipped][:, :, ::-1]
    y, x = np.divmod(found[:, 0, 0], 10)
    blocks = np.lib.stride_tricks.sliding_window_view(image[0, ..., 0], (7, 7))
    np.testing.assert_array_equal(found, blocks[y, x])
    counts = np.bincount(y * 8 + x * 2 + flipped, minlength=32)
    assert ((counts - 1000) ** 2 / 1000).sum() < 61
    for number in (y, x, flipped):
        for lag in (1, 2, 500):
            assert abs(np.corrcoef(number[lag:], number[:-lag])[0, 1]) < 0.025


def test_pairs_are_cropped_and_flipped_as_one():
    left = pictures(20, size=12)
    data = in_memory(np.concatenate([left, 255 - left], axis=-1))
    batches = take(10, stream(data, tasks.pairs, crop=8, flip=True))
    a, b = levels(joined(batches, "a")), levels(joined(batches, "b"))
    np.testing.assert_array_equal(a + b, 255)
    places = {(i, y, x, f): left[i, y : y + 8, x : x + 8][:, :: 1 - 2 * f].tobytes()
              for i in range(20) for y in range(5) for x in range(5) for f in (0, 1)}  # fmt: skip
    assert {image.astype(np.uint8).tobytes() for image in a} <= set(places.values())


@pytest.mark.parametrize("second", [False, True])
def test_two_domains_resume_and_divide(dataset, second):
    small = in_memory(pictures(7, seed=1)[..., :1])
    a, b = (small, dataset) if second else (dataset, small)

    def run(**kwargs):
        return stream(a, tasks.unpaired, other=b, crop=6, flip=True, **kwargs)

    whole = take(14, run())
    assert {k: v.shape for k, v in whole[0].items() if k != "label"} == {
        "a": (8, 6, 6, 3), "b": (8, 6, 6, 3), "index": (8,)
    }  # fmt: skip
    assert ("label" in whole[0]) == (not second)  # it is a's
    for start in (1, 6, 9):
        assert_same(whole[start:], take(14 - start, run(start=start)))
    parts = [take(14, run(process_index=i, process_count=2)) for i in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([s[key] for s in shares]))


def test_two_domains_have_orders_of_their_own(dataset):
    numbers = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    batches = take(35, stream(dataset, tasks.unpaired, 10, other=in_memory(numbers)))
    a = which(joined(batches, "a")).reshape(7, COUNT)
    b = levels(joined(batches, "b"))[:, 0, 0, 0].reshape(50, 7)
    np.testing.assert_array_equal(np.sort(a, axis=1), np.tile(np.arange(COUNT), (7, 1)))
    np.testing.assert_array_equal(np.sort(b, axis=1), np.tile(np.arange(7), (50, 1)))
    assert len({tuple(epoch) for epoch in b}) > 40
    np.testing.assert_array_equal(
        joined(take(35, stream(dataset, tasks.generate, 10)), "image"), joined(batches, "a")
    )


def test_equal_domains_are_not_paired():
    numbers = np.arange(20_000, dtype=np.uint32).view(np.uint8).reshape(20_000, 2, 2, 1)
    data = in_memory(numbers)

    def rows(field, seed):
        batches = take(10, stream(data, tasks.unpaired, 2000, seed, other=data))
        pixels = levels(joined(batches, field)).astype(np.uint8).reshape(-1, 4)
        return pixels.view(np.uint32).ravel().astype(np.int64)

    orders = [rows(field, seed) for field in "ab" for seed in (3, 4)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(20_000))
    assert np.abs(np.corrcoef(orders) - np.eye(4)).max() < 0.04  # standard error 0.007
    assert all((orders[i] == orders[j]).mean() < 0.001 for i in range(4) for j in range(i))


def test_domains_of_one_image():
    one, three = in_memory(pictures(1, seed=1)), in_memory(pictures(3))
    for a, b in ((one, three), (three, one), (one, one)):
        batches = take(5, stream(a, tasks.unpaired, 4, other=b, crop=6, flip=True))
        assert joined(batches, "b").shape == joined(batches, "a").shape == (20, 6, 6, 3)
        ended = stream(a, tasks.unpaired, 1, other=b, repeat=False)
        assert len(list(ended)) == max(a.num_examples, b.num_examples)


def test_eval_keeps_what_belongs_together(dataset):
    twin = in_memory(255 - pictures(COUNT))
    if dataset.read is not None:  # the files lie by class
        twin = in_memory((255 - pictures(COUNT)).reshape(5, 10, 8, 8, 3).swapaxes(0, 1).reshape(
            COUNT, 8, 8, 3))  # fmt: skip
    batches = list(pipeline.eval_batches(dataset, tasks.unpaired, batch_size=16, other=twin))
    np.testing.assert_array_equal(levels(joined(batches, "a")) + levels(joined(batches, "b")), 255)
    assert joined(batches, "valid").sum() == COUNT


# --- tasks and errors ---


def test_generate_has_images_alone():
    (batch,) = take(1, stream(in_memory(pictures(9), np.arange(9, dtype=np.int32)), tasks.generate))
    assert batch.keys() == {"image", "index"}


def test_label_without_labels():
    with pytest.raises(UserError, match="'label' needs labels"):
        stream(in_memory(pictures(9)), tasks.label)


def test_find_task():
    assert tasks.find("label") is tasks.label
    assert tasks.find("aigc_jax.data.tasks.generate") is tasks.generate
    with pytest.raises(UserError, match=r"unknown task 'lable'\. Did you mean 'label'"):
        tasks.find("lable")
    for name in ("_imported", "find", "UserError"):
        with pytest.raises(UserError, match="unknown task"):
            tasks.find(name)
    with pytest.raises(UserError, match=r"cannot import the task 'nowhere\.task'"):
        tasks.find("nowhere.task")


def test_sizes_that_do_not_fit():
    data = in_memory(pictures(9))
    with pytest.raises(UserError, match="batch_size 9 does not divide among 2"):
        stream(data, tasks.generate, batch_size=9, process_count=2)
    with pytest.raises(UserError, match="batch_size 16 is more than the 9 examples"):
        stream(data, tasks.generate, batch_size=16, repeat=False)
    with pytest.raises(UserError, match="'unpaired' needs two domains"):
        stream(data, tasks.unpaired)
    assert len(take(2, stream(data, tasks.generate, batch_size=16))) == 2


# --- prefetch ---


def test_prefetch_runs_ahead_and_keeps_the_order():
    log = []

    def put(x):
        log.append(x)
        return -x

    ahead = pipeline.prefetch(iter(range(5)), put, size=2)
    assert log == []
    assert next(ahead) == 0 and log == [0, 1]
    assert next(ahead) == -1 and log == [0, 1, 2]
    assert list(ahead) == [-2, -3, -4]
    assert list(pipeline.prefetch([], put)) == []


def test_prefetch_and_import_need_no_tensorflow():
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from aigc_jax.data import pipeline, sources, tasks\n"
        "assert list(pipeline.prefetch([1, 2], str)) == ['1', '2']\n"
        "assert sources.load('digits', image_size=8).num_examples == 1497\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_mnist_from_memory_and_from_records():
    if not os.environ.get("AIGC_DATA_DIR"):
        pytest.skip("AIGC_DATA_DIR is not set: no MNIST to read")
    whole = sources.load("tfds:mnist/test", image_size=28)
    streamed = sources.load("tfds:mnist/test", image_size=28, cache_bytes=0)
    kept, read = (
        next(pipeline.eval_batches(data, tasks.label, batch_size=500)) for data in (whole, streamed)
    )
    assert_same([kept], [read])
    counts = collections.Counter(kept["label"].tolist())
    assert len(counts) == 10
    assert_same(
        take(3, stream(streamed, batch_size=500, start=19)),  # over the edge of an epoch
        take(22, stream(streamed, batch_size=500))[19:],
    )
