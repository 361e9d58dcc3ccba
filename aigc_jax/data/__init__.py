"""Data: where images come from (`sources`), what a batch holds (`tasks`), the stream (`pipeline`).

The only room that imports TensorFlow, and only when a stream is built or a TFDS set is read:
importing these modules costs nothing, and `pipeline.prefetch` runs where TensorFlow is absent.
"""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

_lock = threading.Lock()


def tensorflow() -> ModuleType:
    """TensorFlow, kept off the accelerators, whose memory belongs to JAX; for any thread."""
    with _lock:  # two that silence the process at once would leave it silent
        return _tensorflow()


@functools.cache
def _tensorflow() -> ModuleType:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nothing here gains by it, and it chats
    with _silence():
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            # Refused once TensorFlow has started: then the caller has placed it already.
            with contextlib.suppress(RuntimeError):
                tf.config.set_visible_devices([], kind)
    return tf


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drops what C++ prints on loading: notes on CUDA that no setting turns off."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(null)
        os.close(stderr)
