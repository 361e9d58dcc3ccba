"""TFDS sets: what TensorFlow decodes is what Pillow does; files, shuffling and wrong labels."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from aigc_jax.data import pipeline, records, sources, tasks
from aigc_jax.errors import UserError


def pictures(count, size=8, seed=0):
    """Smooth colour pictures, (count, size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    blur = ImageFilter.GaussianBlur(1)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in noise])


def test_records_are_decoded_as_pil_does(tmp_path):
    """Crop, resize and conversion to grey in TensorFlow against Pillow."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    images = [pictures(1, 40, seed=i)[0][: 24 + 8 * i] for i in range(3)]
    big = [np.asarray(Image.fromarray(i).resize((40, i.shape[0]), Image.BILINEAR)) for i in images]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="ragged",
        version="1.0.0",
        data_dir=tmp_path,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict({"photo": tfds.features.Image(shape=(None, None, 3))}),
        split_datasets={
            "train": tf.data.Dataset.from_generator(
                lambda: ({"photo": image} for image in big),
                output_signature={"photo": tf.TensorSpec((None, None, 3), tf.uint8)},
            )
        },
    )
    for size in (16, 24, 64):
        for channels in (1, 3):
            data = sources.load(
                "tfds:ragged", data_dir=str(tmp_path), image_size=size, channels=channels
            )
            assert data.class_names == () and data.labels is None
            for image, source in zip(data.images, big, strict=True):
                left = (40 - len(source)) // 2
                square = Image.fromarray(source[:, left : left + len(source)])
                square = square.resize((size, size), Image.Resampling.BICUBIC)
                truth = np.asarray(square.convert("L" if channels == 1 else "RGB"), int)
                # Pillow rounds and clips between its two passes, so the last bits may differ.
                assert np.abs(image.squeeze() - truth).max() <= 3


def test_records_of_several_files(tmp_path):
    """Each record of (file, skip, take) once an epoch, in an order of (seed, epoch)."""
    import tensorflow as tf
    from tensorflow_datasets.core.utils.shard_utils import FileInstruction

    parts = []
    for i, (skip, take) in enumerate([(0, -1), (0, -1), (10, 15)]):
        path = str(tmp_path / f"set.tfrecord-{i}")
        with tf.io.TFRecordWriter(path) as writer:
            for j in range(40):
                writer.write(f"{i} {j}".encode())
        parts.append(FileInstruction(path, skip, take, 40))
    expected = [f"{i} {j}".encode() for i in (0, 1) for j in range(40)]
    expected += [f"2 {j}".encode() for j in range(10, 25)]
    read = records._records(tf, "set", parts, buffer=20)

    def order(seed, epoch):
        return list(read(seed, tf.constant(epoch, tf.int64)).as_numpy_iterator())

    assert order(None, 0) == order(None, 1) == expected
    orders = [tuple(order(seed, epoch)) for seed in (0, 1) for epoch in range(3)]
    assert all(sorted(found) == sorted(expected) for found in orders)
    assert len(set(orders)) == 6 and tuple(order(0, 1)) == orders[1]
    # More than the buffer mixes: the files themselves come in turns.
    assert len({record.split()[0] for record in orders[0][:40]}) == 3
    with pytest.raises(UserError, match="set is not stored as TFRecords"):
        records._records(tf, "set", [FileInstruction("a.array_record", 0, -1, 1)], buffer=20)


def test_labels_out_of_range_in_a_stream(tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    examples = {"image": pictures(4), "label": np.array([0, 1, -1, 1])}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="odd",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
        ),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(examples)},
    )
    with pytest.raises(UserError, match=r"label -1, which is not in \[0, 2\)"):
        sources.load("tfds:odd", data_dir=str(tmp_path), image_size=8)
    data = sources.load("tfds:odd", data_dir=str(tmp_path), image_size=8, cache_bytes=0)
    with pytest.raises(UserError, match=r"tfds:odd/train has labels outside of \[0, 2\)"):
        next(pipeline.batches(data, tasks.label, batch_size=4, seed=0))
