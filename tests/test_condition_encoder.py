"""What becomes of labels and texts before a network uses them, and how guidance moves it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text, nothing
from aigc_jax.models.condition_encoder import ConditionEncoder, guided
from aigc_jax.models.crf_generator import CRFGenerator
from aigc_jax.models.dcgan import Generator as DCGAN
from aigc_jax.models.fusion_gan import Generator
from aigc_jax.models.text_encoder import Transformer

KEY = jax.random.key(0)
TOKENS = jnp.array([[2, 7, 8, 3, 0], [2, 9, 3, 0, 0]], jnp.int32)
SENTENCE = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
FEATURES = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
MASK = TOKENS != 0

ENCODER = ConditionEncoder(num_classes=3, vocabulary=10, width=8, depth=1)
CONDITIONS = {
    "labels": jnp.array([2, 0], jnp.int32),
    "tokens": Text(TOKENS, MASK),
    "sentence": Text(jnp.zeros((2, 0, 6)), jnp.zeros((2, 0), bool), SENTENCE),
    "features": Text(FEATURES, MASK, SENTENCE),
}


@functools.cache
def variables(kind):
    return jax.jit(ENCODER.init)(KEY, CONDITIONS[kind])


def encode(kind, condition=None, guidance=0.0):
    run = jax.jit(lambda v, c: ENCODER.apply(v, c, guidance))
    return jax.device_get(
        run(variables(kind), CONDITIONS[kind] if condition is None else condition)
    )


def close(x, y):
    np.testing.assert_allclose(x, y, atol=1e-6)


# ---- what it makes of each kind ----


def test_labels_are_rows():
    table = variables("labels")["params"]["label"]["embedding"]
    assert table.shape == (4, 8)  # one says nothing
    encoded = encode("labels")
    np.testing.assert_array_equal(encoded.vector, table[np.array([2, 0])])
    assert encoded.features is None and encoded.mask is None
    np.testing.assert_array_equal(
        encode("labels", jnp.array([3, 3])).vector, table[np.array([3, 3])]
    )


def test_tokens_are_the_transformers():
    encoded, params = encode("tokens"), variables("tokens")["params"]
    transformer = Transformer(vocabulary=10, length=5, width=8, depth=1)
    vector, features = jax.jit(transformer.apply)({"params": params["text"]}, TOKENS, MASK)
    close(encoded.vector, vector)
    close(encoded.features, features)
    np.testing.assert_array_equal(encoded.mask, MASK)


def test_a_frozen_encoders_are_linear_maps():
    alone, both = encode("sentence"), encode("features")
    for found, kind in ((alone, "sentence"), (both, "features")):
        layer = jax.device_get(variables(kind)["params"]["sentence"])
        close(found.vector, SENTENCE @ layer["kernel"] + layer["bias"])
    assert alone.features is None and alone.mask is None
    layer = jax.device_get(variables("features")["params"]["token"])
    close(both.features, FEATURES @ layer["kernel"] + layer["bias"])
    np.testing.assert_array_equal(both.mask, MASK)


def test_padding_changes_nothing():
    """Whatever ids stand behind the end."""
    vector, features, _ = encode("tokens")
    noisy = encode("tokens", Text(jnp.where(MASK, TOKENS, 5), MASK))
    close(noisy.vector, vector)
    close(noisy.features, features)


def test_order_of_words_counts():
    swapped = TOKENS.at[0, 1].set(8).at[0, 2].set(7)
    found, as_is = encode("tokens", Text(swapped, MASK)).vector, encode("tokens").vector
    assert np.abs(found[0] - as_is[0]).max() > 1e-5
    close(found[1], as_is[1])


# ---- guidance ----


@pytest.mark.parametrize("kind", CONDITIONS)
def test_guidance_goes_on_from_what_says_nothing(kind):
    guides, v = (-1.0, -0.5, 0.0, 1.5), variables(kind)

    @jax.jit
    def run(c):
        empty = ENCODER.apply(v, nothing(c, 3))
        return ENCODER.apply(v, c), empty, [ENCODER.apply(v, c, g) for g in guides]

    told, empty, guided_ones = jax.device_get(run(CONDITIONS[kind]))
    close(guided_ones[0].vector, empty.vector)
    np.testing.assert_array_equal(guided_ones[2].vector, told.vector)
    assert np.abs(told.vector - empty.vector).max() > 1e-3
    for guidance, found in zip(guides, guided_ones, strict=True):
        close(found.vector, (1 + guidance) * told.vector - guidance * empty.vector)
        if told.features is None:
            assert found.features is None
            continue
        # Each token goes from the whole of the empty text, which has none of its own.
        away = told.features - empty.vector[:, None]
        close(found.features, told.features + guidance * away)
        np.testing.assert_array_equal(found.mask, told.mask)


@pytest.mark.parametrize("kind", CONDITIONS)
def test_guidance_adds_no_parameter(kind):
    shapes = jax.eval_shape(lambda: ENCODER.init(KEY, CONDITIONS[kind], 2.0))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables(kind))


def test_guided_networks():
    generator = Generator(image_size=16, condition="film")
    assert guided(generator, 2.0) == generator.clone(guidance=2.0)
    wrapped = guided(CRFGenerator(generator, "gaussian"), -1.0)
    assert wrapped.generator.guidance == -1.0 and wrapped.kind == "gaussian"
    with pytest.raises(UserError, match="--guidance: the network 'dcgan' has none; fusion_gan"):
        guided(DCGAN(), 1.0)


# ---- mistakes ----


def test_texts_without_a_vocabulary():
    with pytest.raises(UserError, match=r"config\.vocabulary is 0"):
        jax.eval_shape(ConditionEncoder(num_classes=3).init, KEY, CONDITIONS["tokens"])


def test_no_condition():
    with pytest.raises(ValueError, match="pass a label or a text"):
        jax.eval_shape(ENCODER.init, KEY, None)


def test_dtype_of_the_computation():
    half = ENCODER.clone(dtype=jnp.bfloat16)
    for kind in ("labels", "sentence"):
        encoded = jax.eval_shape(half.apply, variables(kind), CONDITIONS[kind])
        assert encoded.vector.dtype == jnp.bfloat16
