"""What is in a batch: a task is a function from a batch of examples to the batch's fields.

It receives a dict of TensorFlow tensors and returns one, with any of these or fields made of them:

=========  =================  =============================================================
``image``  (B, S, S, C) f32   in [-1, 1]
``label``  (B,) int32         in [0, num_classes), where the source has labels
``other``  (B, S, S, C) f32   from data.b, where data.a and data.b are two sources: ``image`` and
                              ``label`` are then from data.a, and nothing relates the two
``index``  (B,) int32         position in the stream; the pipeline passes it on by itself
``seed``   (B, 2) int32       one seed per example for the task's own randomness: stateless
                              operations on it keep the stream a function of the step alone
=========  =================  =============================================================

A function with a parameter `data` is given the config's section of that name, one with a parameter
`reader` what turns captions into fields (see `data.text`).

C is 2 or 6 where the source holds pairs: left and right stacked on the channels, so that crop and
flip are the same for both. `config.task` names a function of this file, or, with a dot, one of the
user's own modules.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from aigc_jax.data import captions, degrade, masks
from aigc_jax.errors import UserError, did_you_mean

Fields = dict[str, Any]
Task = Callable[..., Fields]


def generate(example: Mapping[str, Any]) -> Fields:
    """Images alone, for unconditional generation."""
    return {"image": _single(example, "generate")}


def label(example: Mapping[str, Any]) -> Fields:
    """Images with their classes, for conditional generation and classification."""
    if "label" not in example:
        raise UserError(
            "the task 'label' needs labels and this source has none: use the task 'generate', "
            "or a source with labels (class folders, an npz file with 'labels', a TFDS set)"
        )
    return {"image": _single(example, "label"), "label": example["label"]}


def text(example: Mapping[str, Any], reader: Any) -> Fields:
    """Images with their captions as `reader` reads them, for generation from texts.

    Where the source has them: captions that are not true of the image (`wrong_` before the fields'
    names), and what a caption asks for (`asked`).
    """
    if "caption" not in example:
        raise UserError(
            "the task 'text' needs captions and this source has none: take shapes, or a folder "
            "with a .txt file beside each image or a metadata.jsonl"
        )
    caption = captions.one_of(example["caption"], example["seed"])
    fields = {"image": _single(example, "text"), **_read(reader, caption)}
    if "wrong_caption" in example:
        wrong = _read(reader, example["wrong_caption"])
        fields |= {f"wrong_{name}": x for name, x in wrong.items()}
    if "asked" in example:
        fields["asked"] = example["asked"]
    return fields


def text_segments(example: Mapping[str, Any], reader: Any) -> Fields:
    """The task `text`, and the images' label maps: `segments`."""
    return {**text(example, reader), "segments": segments(example)["segments"]}


def _read(reader: Any, texts: Any) -> Fields:
    """The fields of captions (B,) of strings."""
    from aigc_jax.data import tensorflow

    tf, specs = tensorflow(), reader.specs
    dtypes = [dtype for _, dtype in specs.values()]
    read = lambda texts: [*reader(texts).values()]  # noqa: E731
    parts = tf.numpy_function(read, [texts], dtypes, stateful=False)
    return {
        name: tf.ensure_shape(part, (texts.shape[0], *shape))
        for (name, (shape, _)), part in zip(specs.items(), parts, strict=True)
    }


def colorize(example: Mapping[str, Any]) -> Fields:
    """Grey to colour: `b` is the image, `a` its ITU-R 601 luma as a grey file would hold it.

    `a` has three equal channels; labels are passed on.
    """
    image = _single(example, "colorize")
    if image.shape[-1] != 3:
        raise UserError(
            "the task 'colorize' needs colour and this source is grey: name one in colour, and "
            "leave config.channels at 0 or 3"
        )
    return {"a": _luma(image), "b": image, **_labels(example)}


def outlines(example: Mapping[str, Any]) -> Fields:
    """Drawings to pictures: `a` is a scene of shapes as coloured outlines, `b` the scene."""
    if "outline" not in example:
        raise UserError("the task 'outlines' needs outlines: set config.data.source to shapes")
    drawing = _float(example["outline"])
    return {"a": drawing, "b": _single(example, "outlines"), **_labels(example)}


def segments(example: Mapping[str, Any]) -> Fields:
    """Images and their label maps: `segments` (B, S, S) int32, see `data.shapes`."""
    if "segments" not in example:
        raise UserError("the task 'segments' needs label maps: set config.data.source to shapes")
    maps = _int32(example["segments"])
    return {"image": _single(example, "segments"), "segments": maps, **_labels(example)}


def pairs(example: Mapping[str, Any]) -> Fields:
    """Two pictures of each scene, for translation with known truth: `a` is the left half."""
    image = example["image"]
    if image.shape[-1] % 2:
        raise UserError(
            "the task 'pairs' needs side by side images: name their folder, pairs:DIR, in "
            "config.data.source"
        )
    half = image.shape[-1] // 2
    return {"a": image[..., :half], "b": image[..., half:], **_labels(example)}


def unpaired(example: Mapping[str, Any]) -> Fields:
    """Images of two domains that don't belong together, `a` of data.a and `b` of data.b."""
    if "other" not in example:
        raise UserError("the task 'unpaired' needs two domains: set config.data.a and data.b")
    return {"a": example["image"], "b": example["other"], **_labels(example)}


def restore(example: Mapping[str, Any], data: ConfigDict) -> Fields:
    """Damaged images as `source`, by `data.degrade`, and what they were as `target`."""
    image = _single(example, "restore")
    if data.mask:
        raise UserError("the task 'restore' makes no holes: leave out data.mask, or take 'inpaint'")
    source = degrade.batch(_operations(data, "restore"), image, example["seed"])
    return {"source": source, "target": image, **_labels(example)}


def inpaint(example: Mapping[str, Any], data: ConfigDict) -> Fields:
    """Images with holes: `source` is 0 where `mask`, of `data.mask`, is 0, and `target` whole.

    What is known is damaged too where `data.degrade` says so.
    """
    image = _single(example, "inpaint")
    if not data.mask:
        raise UserError("the task 'inpaint' needs holes: set config.data.mask, e.g. to strokes")
    mask = masks.draw(data.mask, example["seed"], image.shape[1])
    source = image
    if data.degrade:
        source = degrade.batch(_operations(data, "inpaint"), image, example["seed"])
    return {"source": source * mask, "target": image, "mask": mask, **_labels(example)}


def scene(example: Mapping[str, Any]) -> Fields:
    """Pictures of shapes, the table of their objects, and what their captions tell of them."""
    if "scene" not in example:
        raise UserError("the task 'scene' needs scenes: set config.data.source to shapes")
    known = ("scene", "background", "asked")
    return {"image": _single(example, "scene"), **{name: example[name] for name in known}}


def _operations(data: ConfigDict, task: str) -> tuple[degrade.Operation, ...]:
    if not data.degrade:
        raise UserError(
            f"the task {task!r} needs a damage to repair: set config.data.degrade, e.g. noise(25)"
        )
    return degrade.parse(data.degrade)


def _single(example: Mapping[str, Any], task: str) -> Any:
    image = example["image"]
    if image.shape[-1] not in (1, 3):
        raise UserError(
            f"the task {task!r} needs single images and this source holds pairs: set "
            "config.task=pairs, or name another source"
        )
    return image


def _labels(example: Mapping[str, Any]) -> Fields:
    return {"label": example["label"]} if "label" in example else {}


def _float(levels: Any) -> Any:
    """uint8 -> float32 in [-1, 1]."""
    from aigc_jax.data import tensorflow

    return tensorflow().cast(levels, "float32") / 127.5 - 1


def _int32(values: Any) -> Any:
    from aigc_jax.data import tensorflow

    return tensorflow().cast(values, "int32")


def _luma(image: Any) -> Any:
    """(..., 3) in [-1, 1] -> the same of equal channels, on the 256 levels of a grey file."""
    from aigc_jax.data import tensorflow

    tf = tensorflow()
    luma = tf.reduce_sum(image * tf.constant([0.299, 0.587, 0.114]), axis=-1, keepdims=True)
    levels = tf.round((luma + 1) * 127.5)
    return tf.repeat(levels / 127.5 - 1, 3, axis=-1)


def find(name: str) -> Task:
    """The task called `name`: `"label"` of this file, or `"my.module.function"`.

    Raises UserError for a name that does not exist.
    """
    if "." in name:
        return _imported(name)
    known = {
        key: value
        for key, value in globals().items()
        if inspect.isfunction(value) and value.__module__ == __name__ and not key.startswith("_")
    }
    del known["find"]
    if name not in known:
        raise UserError(f"unknown task {name!r}.{did_you_mean(name, known)}")
    return known[name]


def _imported(name: str) -> Task:
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import the task {name!r}: {error}") from error
