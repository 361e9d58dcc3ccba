"""A VAE of texts: its step, its samples and its codes are told the caption."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax import config as configs
from aigc_jax import parallel
from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text
from aigc_jax.losses import likelihood
from aigc_jax.methods import vae as method
from aigc_jax.models import fusion_vae
from aigc_jax.models.condition_encoder import ConditionEncoder

RNG = jax.random.key(0)
WORDS, LENGTH, LATENT = 12, 5, 3
ENCODER = dict(vocabulary=WORDS, width=8, depth=0)


class Reads(nn.Module):
    """An encoder of 4x4 images that is quick to compile."""

    @nn.compact
    def __call__(self, x, condition=None, *, train):
        vector = ConditionEncoder(**ENCODER)(condition).vector
        x = nn.Dense(2 * LATENT)(jnp.concatenate([x.reshape(len(x), -1), vector], -1))
        return x[:, :LATENT], x[:, LATENT:]


class Draws(nn.Module):
    """Its decoder."""

    outputs: int
    latent_dim: int = LATENT
    image_size: int = 4
    guidance: float = 0.0

    @nn.compact
    def __call__(self, z, condition=None, *, train):
        vector = ConditionEncoder(**ENCODER)(condition, self.guidance).vector
        x = nn.Dense(16 * self.outputs)(jnp.concatenate([z, vector], -1))
        return x.reshape(-1, 4, 4, self.outputs)


def make(**fields):
    law = likelihood.get("gaussian", 3)
    defaults = dict(tx=optax.sgd(0.01), dropout=0.3)
    return method.VAE(Reads(), Draws(law.outputs), law, **defaults | fields)


def make_batch(n=8, seed=0, size=4):
    rng = np.random.default_rng(seed)
    tokens = np.zeros((n, LENGTH), np.int32)
    for row, words in zip(tokens, rng.integers(1, LENGTH - 1, n), strict=True):
        row[: words + 2] = [2, *rng.integers(4, WORDS, words), 3]
    image = rng.uniform(-1, 1, (n, size, size, 3)).astype(np.float32)
    index = np.arange(n, dtype=np.int32)
    return {"image": image, "index": index, "text": tokens, "text_mask": tokens != 0}


def others(batch):
    """With the texts of other images."""
    return batch | {name: x[::-1].copy() for name, x in batch.items() if name.startswith("text")}


def started(vae, batch, scale=0.3):
    """A first state whose every parameter is away from its first value."""
    state = jax.eval_shape(functools.partial(method.init_state, vae), RNG, batch)
    leaves, tree = jax.tree.flatten(state.variables)
    rng = np.random.default_rng(0)
    drawn = [scale * rng.normal(size=x.shape).astype(x.dtype) for x in leaves]
    variables = jax.tree.unflatten(tree, drawn)
    ema = variables if vae.ema_half_life else None
    return method.State(jnp.zeros((), jnp.int32), variables, vae.tx.init(variables), ema)


@functools.cache
def compiled(name, vae, **fields):
    return jax.jit(functools.partial(getattr(method, name), vae, **fields))


def close(a, b, atol=1e-6, rtol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol, rtol=rtol), a, b)


# ---- the step ----


def test_both_networks_are_told_the_caption_or_nothing():
    """The gradient of the ELBO as the paper writes it, of captions dropped by hand."""
    vae, batch = make(dropout=0.5), make_batch()
    state = started(vae, batch)
    rng = jax.random.fold_in(RNG, 0)
    keys = [jax.random.fold_in(rng, i) for i in range(8)]
    keep = [jax.random.bernoulli(jax.random.fold_in(key, 2), 0.5) for key in keys]
    assert 0 < sum(map(bool, keep)) < 8
    tokens = np.where(np.array(keep)[:, None], batch["text"], [[2, 3, 0, 0, 0]])
    text = Text(tokens.astype(np.int32), tokens != 0)
    x = vae.likelihood.observe(
        jnp.stack([jax.random.split(key)[0] for key in keys]), batch["image"]
    )
    draw = lambda key: jax.random.normal(jax.random.split(key)[1], (1, LATENT))  # noqa: E731
    noise = jnp.stack([draw(key)[0] for key in keys])

    @jax.jit
    @jax.grad
    def by_hand(variables):
        mean, log_scale = vae.encoder.apply(variables["encoder"], x, text, train=True)
        z = mean + jnp.exp(log_scale) * noise
        params = vae.decoder.apply(variables["decoder"], z, text, train=True)
        log_px = vae.likelihood.log_prob(x, params)
        kl = 0.5 * (mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale).sum(-1)
        return (kl - log_px).mean()

    grads = by_hand(state.variables)
    new, metrics = compiled("train_step", vae)(state, batch, RNG)
    moved = jax.tree.map(lambda p, grad: p - 0.01 * grad, state.variables, grads)
    close(new.variables, moved, atol=1e-5, rtol=1e-4)
    assert np.isfinite(metrics["elbo"])


def make_fusion(axis_name=None):
    law = likelihood.get("gaussian", 3)
    network = dict(
        image_size=8, latent_dim=LATENT, width=4, vocabulary=WORDS, text_width=8, text_depth=0
    )
    return dataclasses.replace(
        make(tx=optax.sgd(1e-4)),
        encoder=fusion_vae.Encoder(**network, hidden=8),
        decoder=fusion_vae.Decoder(**network, outputs=law.outputs, condition="film"),
        axis_name=axis_name,
        ema_half_life=100.0,
    )


def trained(mode, devices):
    """The state and metrics after two steps on 16 images each."""
    layout = parallel.layout(mode, jax.devices()[:devices])
    state = started(make_fusion(), make_batch(16, size=8), scale=0.1)
    step = functools.partial(method.train_step, make_fusion(layout.axis_name))
    run = layout.compile(step, state)
    state = layout.place_state(state)
    for seed in range(2):
        state, metrics = run(state, layout.place_batch(make_batch(16, seed, 8)), RNG)
    return jax.device_get((state, metrics))


def test_same_state_under_pmap():
    """With SGD, 8 devices against one, and the networks of the shipped config."""
    one, eight = trained("jit", 1), trained("pmap", 8)
    close(eight[0], one[0])
    close(eight[1], one[1], atol=1e-5, rtol=1e-4)


# ---- use ----


@pytest.fixture(scope="module")
def ready():
    vae, batch = make(), make_batch()
    return vae, started(vae, batch), batch


def test_codes_and_images_depend_on_the_caption(ready):
    vae, state, batch = ready
    z = compiled("encode", vae)(state, batch)
    assert z.shape == (8, LATENT)
    assert np.abs(compiled("encode", vae)(state, others(batch)) - z).max() > 1e-3
    decode = compiled("decode", vae)
    images = decode(state, z, batch)
    assert images.shape == (8, 4, 4, 3) and np.abs(images).max() <= 1
    assert np.abs(decode(state, z, others(batch)) - images).max() > 1e-3
    text = Text(batch["text"], batch["text_mask"])
    params = vae.decoder.apply(state.variables["decoder"], z, text, train=False)
    close(images, jnp.clip(vae.likelihood.mean(params), -1, 1))


def test_samples_with_guidance(ready):
    vae, state, batch = ready

    def draw(batch, **knobs):
        return compiled("sample", vae, **knobs)(state, RNG, batch)

    as_is = draw(batch)
    np.testing.assert_array_equal(draw(batch, guidance=0.0), as_is)
    assert np.abs(draw(batch, guidance=2.0) - as_is).max() > 1e-3
    assert np.abs(draw(others(batch)) - as_is).max() > 1e-3
    close(draw(batch, guidance=-1.0), draw(others(batch), guidance=-1.0), atol=1e-5)


def test_preview_has_a_row_a_text(ready):
    vae, state, batch = ready
    grids = compiled("preview", vae)(state, RNG, batch)
    assert grids["samples"].shape == (8, 8, 4, 4, 3)
    assert grids["reconstructions"].shape == (2, 8, 4, 4, 3)
    told = {name: np.repeat(batch[name][5:6], 8, 0) for name in ("text", "text_mask")}
    row = compiled("sample", vae)(state, RNG, {"index": np.arange(40, 48), **told})
    close(grids["samples"][5], row, atol=1e-5)


def test_bounds_are_of_the_captions(ready):
    vae, state, batch = ready
    vae = dataclasses.replace(vae, nll_samples=4)
    run = compiled("eval_step", vae, metrics=("elbo",))
    batch = batch | {"valid": np.ones(8, np.float32)}
    (right, _), (wrong, _) = (run(state, x, RNG)["elbo"] for x in (batch, others(batch)))
    assert abs(right - wrong) > 1e-3


# ---- configs ----


def test_from_config():
    config = configs.load("shapes_text_vae")
    config.channels, config.num_classes, config.vocabulary = 3, 0, 52
    vae = method.from_config(config)
    assert vae.dropout == config.conditioning.dropout > 0
    assert vae.encoder.vocabulary == vae.decoder.vocabulary == 52
    config.decoder.condition = "flim"
    vae, batch = method.from_config(config), make_batch(1, size=32)
    with pytest.raises(UserError, match=r"holds 'flim'\. Did you mean 'film'"):
        jax.eval_shape(functools.partial(method.init_state, vae), RNG, batch)
