"""Images enhanced: turned, cropped, recoloured, disturbed; for training on few, and for folders.

`kinds` says what there is, `chain` reads a list of them and makes matrices of it, `arrays` applies
it to batches inside a compiled step; `aigc_jax.data.augment` is its twin in tf.data.
"""

from aigc_jax.augment.arrays import augment
from aigc_jax.augment.chain import Chain, parse
from aigc_jax.augment.in_step import augmented, check

__all__ = ["Chain", "augment", "augmented", "check", "parse"]
