"""What is in a batch: a task is a function from a batch of examples to the batch's fields.

It receives a dict of TensorFlow tensors and returns one, with any of these or fields made of them:

=========  =================  =============================================================
``image``  (B, S, S, C) f32   in [-1, 1]
``label``  (B,) int32         in [0, num_classes), where the source has labels
``index``  (B,) int32         position in the stream; the pipeline passes it on by itself
``seed``   (B, 2) int32       one seed per example for the task's own randomness: stateless
                              operations on it keep the stream a function of the step alone
=========  =================  =============================================================

`config.task` names a function of this file, or, with a dot, one of the user's own modules.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from aigc_jax.errors import UserError, did_you_mean

Fields = dict[str, Any]
Task = Callable[[Mapping[str, Any]], Fields]


def generate(example: Mapping[str, Any]) -> Fields:
    """Images alone, for unconditional generation."""
    return {"image": example["image"]}


def label(example: Mapping[str, Any]) -> Fields:
    """Images with their classes, for conditional generation and classification."""
    if "label" not in example:
        raise UserError(
            "the task 'label' needs labels and this source has none: use the task 'generate', "
            "or a source with labels (class folders, an npz file with 'labels', a TFDS set)"
        )
    return {"image": example["image"], "label": example["label"]}


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
