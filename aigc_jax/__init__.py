"""aigc_jax: train and measure image generators in JAX and Flax.

Importing the package loads nothing else: `aigc_jax.methods.gan` and its like never import
TensorFlow, only `aigc_jax.data` does.
"""

__version__ = "0.1.0"
