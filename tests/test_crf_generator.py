"""A CRF around any generator: what it is fed, what it passes on, what a config may ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from aigc_jax import models
from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text
from aigc_jax.layers.crf import GaussianCRF, MeanFieldCRF
from aigc_jax.models import dcgan
from aigc_jax.models.crf_generator import CRFGenerator

RNG = jax.random.key(0)
LABEL = jnp.array([2, 0, 3])


class Painter(nn.Module):
    """Latents and, if it is told one, a condition -> an image: a linear map."""

    latent_dim: int = 4
    image_size: int = 6
    channels: int = 3

    @nn.compact
    def __call__(self, z, condition=None, *, train):
        shape = self.image_size, self.image_size, self.channels
        return jnp.tanh(nn.Dense(int(np.prod(shape)), name="paint")(z)).reshape(-1, *shape)


def made(kind, condition=None, **fields):
    """The wrapped painter, its variables away from the first values, and latents."""
    model = CRFGenerator(Painter(), kind, window=3, iterations=3, num_classes=4, **fields)
    z = jax.random.normal(RNG, (3, 4))
    variables = jax.jit(model.init, static_argnames="train")(RNG, z, condition, train=False)
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda w: w + rng.normal(0, 0.3, w.shape).astype(np.float32), variables)
    return model, drawn, z


def painted(variables, z):
    inner = {"params": variables["params"]["generator"]}
    return Painter().apply(inner, z, train=False)


def run(model, variables, *args):
    return jax.jit(model.apply, static_argnames="train")(variables, *args, train=False)


def test_mean_field_is_of_scaled_logits():
    model, variables, z = made("mean_field", LABEL)
    params, x = variables["params"], painted(variables, z)
    logits = x * params["sharpness"]
    crf = MeanFieldCRF(3, 3)
    q = jax.jit(crf.apply)({"params": params["crf"]}, logits, logits, jax.nn.one_hot(LABEL, 4))
    out = run(model, variables, z, LABEL)
    np.testing.assert_allclose(out, 2 * q - 1, atol=1e-5)
    np.testing.assert_allclose((out + 1).sum(-1) / 2, 1, atol=1e-5)
    assert out.shape == (3, 6, 6, 3)


def test_gaussian_is_of_the_image_by_itself():
    model, variables, z = made("gaussian", LABEL)
    x = painted(variables, z)
    crf = GaussianCRF(iterations=3)
    params = {"params": variables["params"]["crf"]}
    out = run(model, variables, z, LABEL)
    expected = jax.jit(crf.apply)(params, x, x, jax.nn.one_hot(LABEL, 4))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.abs(out).max() <= 1 and np.abs(out - x).max() > 1e-3


def words(ids):
    tokens = jnp.array(ids, jnp.int32)
    return Text(tokens, tokens > 0)


@pytest.mark.parametrize("kind", ["gaussian", "mean_field"])
@pytest.mark.parametrize("how", ["label", "tokens", "features", "sentence"])
def test_any_condition_reaches_the_potentials(kind, how):
    draw = np.random.default_rng(0).normal
    one = {
        "label": LABEL,
        "tokens": words([[5, 6, 0], [7, 8, 9], [5, 0, 0]]),
        "features": words([[1, 1, 0], [1, 1, 1], [1, 0, 0]])._replace(tokens=draw(size=(3, 3, 5))),
        "sentence": Text(jnp.zeros((3, 0, 5)), jnp.zeros((3, 0), bool), draw(size=(3, 5))),
    }[how]
    other = jax.tree.map(lambda x: x[::-1], one)
    model, variables, z = made(kind, one, vocabulary=10)
    a, b = run(model, variables, z, one), run(model, variables, z, other)
    np.testing.assert_allclose(a[1], b[1], atol=1e-6)
    assert min(np.abs(a - b)[i].max() for i in (0, 2)) > 1e-4


def test_padding_says_nothing_and_neither_does_the_empty_label():
    text = words([[5, 6, 0], [7, 8, 9], [5, 0, 0]])
    model, variables, z = made("mean_field", text, vocabulary=10)
    padded = text._replace(tokens=text.tokens.at[0, 2].set(9))
    np.testing.assert_array_equal(run(model, variables, z, text), run(model, variables, z, padded))
    model, variables, z = made("mean_field", LABEL)
    empty = run(model, variables, z, jnp.full(3, 4))
    variables["params"]["crf"].pop("condition")
    np.testing.assert_allclose(run(model, variables, z), empty, atol=1e-6)


def test_without_the_condition():
    model, variables, z = made("gaussian", LABEL, conditional=False)
    assert "condition" not in variables["params"]["crf"]
    a, b = (run(model, variables, z, label) for label in (LABEL, LABEL[::-1]))
    np.testing.assert_array_equal(a, b)


def test_what_methods_read_is_the_generators():
    model = CRFGenerator(Painter(latent_dim=7, image_size=5, channels=2), "gaussian")
    assert (model.latent_dim, model.image_size, model.channels) == (7, 5, 2)


def test_no_image_depends_on_the_rest_of_the_batch():
    """So every layout of devices gives the same."""
    for kind in ("gaussian", "mean_field"):
        model, variables, z = made(kind, LABEL)
        alone = run(model, variables, z[:1], LABEL[:1])
        np.testing.assert_allclose(run(model, variables, z, LABEL)[:1], alone, atol=1e-6)


def test_text_without_a_vocabulary():
    with pytest.raises(UserError, match=r"config\.vocabulary is 0"):
        made("gaussian", words([[5, 6, 0]] * 3))


def test_fields_are_changed_through_the_field():
    """Of the wrapped generator where the wrapper has them not; None where neither has."""
    plain = Painter(latent_dim=7)
    other = models.changed(plain, image_size=5, channels=2)
    assert (other.latent_dim, other.image_size, other.channels) == (7, 5, 2)
    assert plain.image_size == 6
    wrapped = CRFGenerator(dcgan.Generator(16, axis_name="data"), "gaussian", window=3)
    other = models.changed(wrapped, axis_name=None)
    assert isinstance(other, CRFGenerator) and other.window == 3
    assert other.generator.axis_name is None and other.generator.image_size == 16
    assert models.changed(wrapped, window=5).window == 5
    for network in (plain, wrapped):
        assert models.changed(network, truncation=0.5) is None
        assert models.changed(network, latent_dim=3, truncation=0.5) is None


def test_what_a_wrapper_hands_on_is_changed_where_it_is():
    wrapped = CRFGenerator(Painter(latent_dim=7), "gaussian")
    assert models.changed(wrapped, latent_dim=3).generator.latent_dim == 3


def section(**fields):
    return ConfigDict({"name": "dcgan", "width": 4, **fields})


def build(config, **more):
    common = {"image_size": 16, "channels": 3, "num_classes": 4, "dtype": jnp.float32} | more
    return models.build(config, "Generator", **common)


def test_a_config_asks_for_it():
    model = build(section(crf="mean_field", crf_window=5, crf_iterations=2), segments=9)
    assert isinstance(model, CRFGenerator)
    assert (model.kind, model.window, model.iterations, model.num_classes) == (
        "mean_field",
        5,
        2,
        4,
    )
    assert model.channels == 9 and model.generator.width == 4
    assert not isinstance(build(section(crf=None, crf_window=5)), CRFGenerator)
    assert build(section()).channels == 3 and build(section(), segments=9).channels == 9


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"crf": "meanfield"}, "'meanfield'. Did you mean 'mean_field'"),
        ({"crf": "gaussian", "crf_iteration": 3}, "Did you mean 'crf_iterations'"),
        ({"crf_windw": 3}, "Did you mean 'crf_window'"),
        ({"crf": "mean_field"}, "label maps"),
    ],
)
def test_wrong_configs(fields, said):
    with pytest.raises(UserError, match=said):
        build(section(**fields))


def test_translators_take_it_too():
    """They are called with an image alone, and say of which sizes it must be multiples."""
    fields = {"name": "pix2pix_unet", "width": 4, "levels": 2, "crf": "gaussian"}
    model = models.build(ConfigDict(fields), "Generator", image_size=16, channels=1)
    plain = models.build(
        ConfigDict({"name": "pix2pix_unet", "width": 4, "levels": 2}), "Generator", image_size=16
    )
    assert models.multiple(model) == models.multiple(plain) > 1
    image = jax.random.normal(RNG, (1, 16, 16, 1))
    out, _ = jax.jit(model.init_with_output, static_argnames="train")(RNG, image, train=False)
    assert out.shape == image.shape
