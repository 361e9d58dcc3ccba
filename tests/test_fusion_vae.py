"""fusion_vae: what its networks make, and that both are told the condition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text
from aigc_jax.models import fusion_gan
from aigc_jax.models.fusion_vae import Decoder, Encoder

KEY = jax.random.key(0)
TOKENS = np.array([[2, 7, 8, 3, 0], [2, 9, 3, 0, 0]], np.int32)
CONDITIONS = {
    "labels": np.array([2, 0], np.int32),
    "tokens": Text(TOKENS, TOKENS != 0),
    "none": None,
}
NETWORK = dict(
    image_size=8, latent_dim=6, width=4, num_classes=3, vocabulary=10, text_width=8, text_depth=1
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ready(module, *args):
    """Variables, no parameter at its first value, and the module compiled."""
    shapes = jax.eval_shape(functools.partial(module.init, KEY, train=False), *args)
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [0.3 * normal(*x.shape, seed=i) for i, x in enumerate(leaves)]
    run = jax.jit(functools.partial(module.apply, train=False))
    return functools.partial(run, jax.tree.unflatten(tree, drawn))


def swapped(condition):
    return jax.tree.map(lambda x: x[::-1].copy(), condition)


@pytest.mark.parametrize(("kind", "patch"), [("labels", 2), ("tokens", 1), ("none", 1)])
def test_encoder(kind, patch):
    encoder = Encoder(**NETWORK | dict(image_size=8 * patch), patch=patch)
    x, condition = normal(2, 8 * patch, 8 * patch, 3), CONDITIONS[kind]
    encode = ready(encoder, x, condition)
    mean, log_scale = encode(x, condition)
    assert mean.shape == log_scale.shape == (2, 6)
    assert mean.dtype == log_scale.dtype == jnp.float32
    assert np.abs(encode(x[::-1], condition)[0] - mean).max() > 1e-3
    if condition is not None:
        for found, other in zip(encode(x, swapped(condition)), (mean, log_scale), strict=True):
            assert np.abs(found - other).max() > 1e-3


@pytest.mark.parametrize(("kind", "patch"), [("labels", 2), ("tokens", 1), ("none", 1)])
def test_decoder(kind, patch):
    """Five numbers a pixel, unbounded."""
    decoder = Decoder(**NETWORK | dict(image_size=8 * patch), outputs=5, patch=patch)
    z, condition = 9 * normal(2, 6), CONDITIONS[kind]
    decode = ready(decoder, z, condition)
    params = decode(z, condition)
    assert params.shape == (2, 8 * patch, 8 * patch, 5) and params.dtype == jnp.float32
    assert np.abs(params).max() > 1
    if condition is not None:
        assert np.abs(decode(z, swapped(condition)) - params).max() > 1e-3


def test_decoder_is_the_gans_generator_without_tanh():
    z, label = normal(2, 6), CONDITIONS["labels"]
    decoder = Decoder(**NETWORK, outputs=3)
    decode = ready(decoder, z, label)
    generator = fusion_gan.Generator(**NETWORK, channels=3)
    images = jax.jit(functools.partial(generator.apply, train=False))(*decode.args, z, label)
    np.testing.assert_allclose(jnp.tanh(decode(z, label)), images, atol=1e-6)


def test_names_what_is_wrong():
    z, x = normal(2, 6), normal(2, 8, 8, 3)
    cases = [
        (Decoder(**NETWORK, condition="flim"), z, "holds 'flim'. Did you mean 'film'"),
        (Decoder(**NETWORK | dict(image_size=12)), z, "can't make images of size 12"),
        (Encoder(**NETWORK | dict(image_size=12)), x, "can't make images of size 12"),
        (Encoder(**NETWORK | dict(vocabulary=0)), x, r"config\.vocabulary is 0"),
    ]
    for module, given, line in cases:
        init = functools.partial(module.init, KEY, train=False)
        with pytest.raises(UserError, match=line):
            jax.eval_shape(init, given, CONDITIONS["tokens"])
