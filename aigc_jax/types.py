"""Names for what travels between the rooms of the house, and the conventions it keeps.

Images are NHWC: float32 in [-1, 1] inside the library, uint8 in [0, 255] outside of it.
A batch is a dict of arrays with one leading example axis. Fields by name:

====================  =================  ===========================================
field                 shape, dtype       meaning
====================  =================  ===========================================
``index``             (B,) int32         position in the stream; every batch has it
``image``             (B, H, W, C) f32   in [-1, 1]
``label``             (B,) int32         in [0, num_classes)
``a``, ``b``          (B, H, W, C) f32   in [-1, 1], of the two domains of a translation
``source``            (B, H, W, C) f32   a damaged image; [-1, 1] but for noise, 0 where unknown
``target``            (B, H, W, C) f32   in [-1, 1], what it should be
``mask``              (B, H, W, 1) f32   1 where an image is known, 0 where it is to be made
``text``              (B, T) int32       tokens of a caption, for an encoder that is trained
``text_mask``         (B, T) bool        True for a token, False where the caption has ended
``text_embedding``    (B, E) f32         a caption, by an encoder that is not trained
``text_features``     (B, T, E) f32      its tokens, by the same
``wrong_text`` ...    as those above     a caption that is not true of the image
``segments``          (B, H, W) int32    a label for each pixel
``asked``             (B, 16) int32      what a caption of `data.shapes` says
``scene``             (B, 3, 8) f32      the objects of its pictures
``background``        (B,) int32         of them
====================  =================  ===========================================
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Batch = Mapping[str, Array]
Metrics = dict[str, Array]
PyTree = Any


def to_uint8(images: Array) -> Array:
    """Images in [-1, 1], float, any shape -> uint8 in [0, 255], rounded to nearest."""
    return jnp.clip(jnp.round((images.astype(jnp.float32) + 1) * 127.5), 0, 255).astype(jnp.uint8)
