"""The VAE: its bounds against closed forms, its step against the textbook, its networks' twins."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax import config as configs
from aigc_jax import parallel
from aigc_jax.errors import UserError
from aigc_jax.losses import likelihood
from aigc_jax.methods import vae as method
from aigc_jax.methods.vae import VAE, init_state, train_step
from aigc_jax.models import vae_mlp, vae_resnet

RNG = jax.random.key(0)
SGD, SLOW = optax.sgd(0.1), optax.sgd(1e-3)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5)


def make(size=4, num_classes=0, latent_dim=3, law="bernoulli", model=vae_mlp, width=5, **fields):
    observed = likelihood.get(law, 1)
    networks = dict(latent_dim=latent_dim, width=width, num_classes=num_classes, depth=1)
    return VAE(
        encoder=model.Encoder(**networks),
        decoder=model.Decoder(image_size=size, outputs=observed.outputs, **networks),
        likelihood=observed,
        num_classes=num_classes,
        **dict(tx=SGD) | fields,
    )


def make_batch(n=8, size=4, num_classes=4, seed=0):
    v = np.random.default_rng(seed).integers(0, 256, (n, size, size, 1))
    return {
        "image": (v / 127.5 - 1).astype(np.float32),
        "label": (np.arange(n) % num_classes).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
        "valid": np.ones(n, np.float32),
    }


@functools.cache
def compiled(name, vae, **fields):
    """A function of the method for one VAE, compiled once."""
    return jax.jit(functools.partial(getattr(method, name), vae, **fields))


def start(vae, batch, noise=0.3):
    """A state with noise on all parameters, so that none is 0, as some are at first."""
    state = compiled("init_state", vae)(RNG, batch)
    return state.replace(variables=shaken(state.variables, noise))


def step(vae, state, batch):
    return compiled("train_step", vae)(state, batch, RNG)


def evaluate(vae, state, batch, metrics=("nll",)):
    """Means of what eval_step finds."""
    found = compiled("eval_step", vae, metrics=metrics)(state, batch, RNG)
    return {name: np.asarray(total) / np.asarray(count) for name, (total, count) in found.items()}


def shaken(tree, scale):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32), tree)


# ---- a linear model, of which all is known: z ~ N(0, I), x = W z + b + s N(0, I) ----


class LinearEncoder(nn.Module):
    latent_dim: int = 2

    @nn.compact
    def __call__(self, x, label=None, *, train):
        mean = nn.Dense(self.latent_dim, name="mean")(x.reshape(len(x), -1))
        log_scale = self.param("log_scale", nn.initializers.zeros, (1, self.latent_dim))
        return mean, jnp.broadcast_to(log_scale, mean.shape)


class LinearDecoder(nn.Module):
    latent_dim: int = 2
    image_size: int = 2

    @nn.compact
    def __call__(self, z, label=None, *, train):
        return nn.Dense(self.image_size**2, name="pixels")(z).reshape(-1, 2, 2, 1)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Pixels of a known deviation; params are their means."""

    scale: float = 0.4
    channels: int = 1
    outputs: int = 1
    unit: str = "nats"

    def observe(self, keys, images):
        return images

    def log_prob(self, x, params):
        z = (x - params) / self.scale
        return (-(z**2) / 2 - math.log(self.scale * math.sqrt(2 * math.pi))).sum((1, 2, 3))

    def mean(self, params):
        return params


SCALE = Normal().scale


def linear(off=0.0, **fields):
    """The model, its state with the exact posterior (`off` it), a batch, and its log p(x)."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    w, b = rotation[:, :2] * [1.2, 0.5], rng.normal(size=4)  # orthogonal: a diagonal posterior
    batch = make_batch(256, 2)
    x = batch["image"].reshape(256, 4).astype(np.float64)
    cov = w @ w.T + SCALE**2 * np.eye(4)
    mahalanobis = np.einsum("bi,ij,bj->b", x - b, np.linalg.inv(cov), x - b)
    log_px = -(mahalanobis + np.linalg.slogdet(2 * np.pi * cov)[1]) / 2
    variance = 1 / (1 + np.diag(w.T @ w) / SCALE**2)
    to_mean = w * variance / SCALE**2
    dense = lambda kernel, bias: {"kernel": kernel, "bias": bias}  # noqa: E731
    variables = {
        "encoder": {
            "params": {
                "mean": dense(to_mean, off - b @ to_mean),
                "log_scale": np.log(variance)[None] / 2 + off,
            }
        },
        "decoder": {"params": {"pixels": dense(w.T, b)}},
    }
    vae = VAE(LinearEncoder(), LinearDecoder(), Normal(), **dict(tx=SGD) | fields)
    state = compiled("init_state", vae)(RNG, batch)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, state.variables)
    return vae, state.replace(variables=variables), batch, log_px


@pytest.mark.parametrize("k", [1, 11, 20])  # decoded 1, 1 and 10 at once
def test_nll_with_the_exact_posterior_is_the_truth(k):
    vae, state, batch, log_px = linear(nll_samples=k)
    close(evaluate(vae, state, batch)["nll"], -log_px.mean())


@pytest.mark.parametrize(
    "fields", [dict(objective="iwae"), dict(kl="sampled")], ids=["iwae", "sampled"]
)
def test_loss_with_the_exact_posterior_is_the_truth(fields):
    vae, state, batch, log_px = linear(num_samples=3, **fields)
    close(step(vae, state, batch)[1]["loss"], -log_px.mean())


def test_elbo_is_short_of_the_truth_by_the_divergence():
    """log p(x) - ELBO = KL(q || p(z | x)), here 2 units that are off alike."""
    off = 0.2
    vae, state, batch, log_px = linear(off, num_samples=2000)
    exact = np.exp(2 * (state.variables["encoder"]["params"]["log_scale"] - off))
    gap = ((off**2 / exact + math.expm1(2 * off)) / 2 - off).sum()
    metrics = step(vae, state, batch)[1]
    close(metrics["elbo"], log_px.mean() - gap, rtol=2e-3)
    close(metrics["loss"], -metrics["elbo"])


def test_more_samples_tighten_the_bound():
    nll = []
    for k in (1, 10, 200):
        vae, state, batch, log_px = linear(0.5, nll_samples=k)
        found = evaluate(vae, state, batch)
        nll.append(found["nll"])
    assert nll == sorted(nll, reverse=True) and nll[0] - nll[1] > 0.1
    close(nll[-1], -log_px.mean(), atol=0.02)
    assert -found["elbo"] > nll[1]


def test_one_importance_sample_is_the_elbo():
    batch = make_batch()
    iwae, elbo = make(objective="iwae"), make(kl="sampled")
    state = start(iwae, batch)
    (a, metrics), (b, truth) = step(iwae, state, batch), step(elbo, state, batch)
    close(metrics["loss"], truth["loss"])
    jax.tree.map(functools.partial(close, atol=1e-6), a.variables, b.variables)


# ---- the step ----


def textbook(vae, state, batch, rng):
    """The gradient of minus the bound, a sample at a time, from densities written out."""
    rng = jax.random.fold_in(rng, 0)
    keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(len(batch["image"])))
    keys = jax.vmap(jax.random.split)(keys)
    x = vae.likelihood.observe(keys[:, 0], batch["image"])
    label = batch["label"] if vae.num_classes else None
    shape = (vae.num_samples, vae.decoder.latent_dim)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=1)(keys[:, 1])
    log_normal = jax.scipy.stats.norm.logpdf

    def loss(variables):
        mean, log_scale = vae.encoder.apply(variables["encoder"], x, label, train=True)
        log_px, log_w = [], []
        for e in noise:
            z = mean + jnp.exp(log_scale) * e
            logits = vae.decoder.apply(variables["decoder"], z, label, train=True)
            p = jax.nn.sigmoid(logits)
            log_px.append(jnp.where(x > 0, jnp.log(p), jnp.log(1 - p)).sum((1, 2, 3)))
            log_q = log_normal(z, mean, jnp.exp(log_scale)).sum(-1)
            log_w.append(log_px[-1] + log_normal(z).sum(-1) - log_q)
        log_px, log_w = jnp.stack(log_px), jnp.stack(log_w)
        if vae.objective == "iwae":
            weights = jax.lax.stop_gradient(jax.nn.softmax(log_w, 0))
            return -(weights * log_w).sum(0).mean()
        if vae.kl == "sampled":
            return -log_w.mean()
        kl = (mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale).sum(-1) / 2
        return kl.mean() - log_px.mean()

    return jax.grad(loss)(state.variables)


@pytest.mark.parametrize(
    "fields",
    [dict(objective="iwae", num_classes=4), dict(), dict(kl="sampled")],
    ids=["iwae", "analytic", "sampled"],
)
def test_step_is_the_textbooks(fields):
    vae, batch = make(num_samples=3, **fields), make_batch()
    state = start(vae, batch)
    grads = jax.jit(lambda s: textbook(vae, s, batch, RNG))(state)
    new, metrics = step(vae, state, batch)
    check = functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-4)
    jax.tree.map(lambda p, g, q: check(p - 0.1 * g, q), state.variables, grads, new.variables)
    close(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert new.step == 1


def test_metrics_add_up():
    vae, batch = make(), make_batch()
    state = start(vae, batch)
    metrics = step(vae, state, batch)[1]
    close(metrics["elbo"], metrics["reconstruction"] - metrics["kl"])
    close(metrics["loss"], -metrics["elbo"])
    assert metrics["active_units"] <= 3


def test_kl_warms_up():
    vae, batch = make(beta=2.0, warmup_steps=4), make_batch()
    state = start(vae, batch)
    weights = []
    for i in (0, 1, 3, 100):
        metrics = step(vae, state.replace(step=jnp.int32(i)), batch)[1]
        weights.append((metrics["loss"] + metrics["reconstruction"]) / metrics["kl"])
    close(weights, [0.5, 1.0, 2.0, 2.0], rtol=1e-4)


def test_free_bits_are_free():
    batch = make_batch()
    plenty, none = make(free_bits=50.0), make(beta=0.0)
    state = start(plenty, batch)
    (a, metrics), (b, _) = step(plenty, state, batch), step(none, state, batch)
    close(metrics["loss"], 3 * 50 - metrics["reconstruction"])
    jax.tree.map(functools.partial(close, atol=1e-6), a.variables, b.variables)
    few = make(free_bits=1e-6)  # fewer than any unit has: the plain bound
    metrics = step(few, state, batch)[1]
    close(metrics["loss"], -metrics["elbo"])


def test_ema_follows():
    vae, batch = make(ema_half_life=8.0, ema_ramp_up=0.0), make_batch()
    state = compiled("init_state", vae)(RNG, batch)
    new, _ = step(vae, state, batch)  # 8 images: one half-life
    halfway = lambda a, b, mean: close(mean, (a + b) / 2, atol=1e-6)  # noqa: E731
    jax.tree.map(halfway, state.variables, new.variables, new.ema)
    assert method.weights(new) is new.ema and method.weights(state.replace(ema=None)) is not None


SPREAD = {
    "free-bits": functools.partial(make, free_bits=0.05, num_samples=2, ema_half_life=100.0),
    "sampled": functools.partial(make, kl="sampled", free_bits=0.05, law="gaussian", tx=SLOW),
    "iwae": functools.partial(make, objective="iwae", num_samples=3, num_classes=4),
}


@functools.cache
def trained(name, mode, devices):
    """The state and metrics after three steps on 16 images each."""
    layout = parallel.layout(mode, jax.devices()[:devices])
    vae = SPREAD[name](axis_name=layout.axis_name)
    state = start(dataclasses.replace(vae, axis_name=None), make_batch(16), 0.1)
    run = layout.compile(functools.partial(train_step, vae), state)
    state = layout.place_state(state)
    for i in range(3):
        state, metrics = run(state, layout.place_batch(make_batch(16, seed=i)), RNG)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("free-bits", "pmap"), ("sampled", "pmap"), ("iwae", "pmap"), ("iwae", "fsdp")],
)
def test_same_state_on_every_layout(name, mode):
    """With SGD, 8 devices against one: Adam would hide a wrong scale of gradients."""
    one, eight = trained(name, "jit", 1), trained(name, mode, 8)
    check = functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-5)
    jax.tree.map(check, eight[0], one[0])
    jax.tree.map(functools.partial(close, atol=1e-5), eight[1], one[1])


def test_learns_four_pictures():
    """Their entropy, log 4, is the least nll there is; without a latent it is 8 log 2 + log 2."""
    vae = make(width=32, num_samples=4, tx=optax.adam(1e-2), nll_samples=200)
    rng = np.random.default_rng(3)
    pictures = np.repeat(np.sign(rng.normal(size=(4, 16))), 8, 0).reshape(32, 4, 4, 1)
    batch = make_batch(32) | {"image": pictures.astype(np.float32)}
    state = start(vae, batch, 0.0)
    run = jax.jit(parallel.scan_steps(functools.partial(train_step, vae)))
    batches = jax.tree.map(lambda x: np.broadcast_to(x, (300, *x.shape)), batch)
    state, metrics = run(state, batches, RNG)
    assert metrics["loss"][0] > 10 and metrics["loss"][-1] < 3
    assert math.log(4) - 0.05 < evaluate(vae, state, batch)["nll"] < 2
    decoded = method.decode(vae, state, method.encode(vae, state, batch), batch)
    assert (np.sign(decoded) == pictures).all()


# ---- use and evaluation ----


@pytest.fixture(scope="module", params=[0, 4], ids=["plain", "conditional"])
def ready(request):
    """A VAE, a state with parameters at random, a batch."""
    vae, batch = make(num_classes=request.param, nll_samples=20, width=8), make_batch()
    return vae, start(vae, batch, 0.8), batch


def test_encode_decode_and_sample(ready):
    vae, state, batch = ready
    decode, sample = compiled("decode", vae), compiled("sample", vae)
    z = compiled("encode", vae)(state, batch)
    images, drawn = decode(state, z, batch), sample(state, RNG, batch)
    assert z.shape == (8, 3) and images.shape == drawn.shape == (8, 4, 4, 1)
    assert drawn.dtype == jnp.float32 and np.abs(drawn).max() <= 1
    latents = compiled("latents", vae)(RNG, batch)
    close(decode(state, latents, batch), drawn, atol=1e-6)
    cold = compiled("sample", vae, temperature=0.0)(state, RNG, batch)
    close(decode(state, jnp.zeros((8, 3)), batch), cold, atol=1e-6)


def test_samples_depend_on_the_index_alone(ready):
    vae, state, batch = ready
    rows = np.array([5, 2])
    some = {name: x[rows] for name, x in batch.items()}
    latents = compiled("latents", vae)
    sample = functools.partial(compiled("sample", vae), state)
    for draw in (latents, sample):
        close(draw(RNG, some), draw(RNG, batch)[rows], atol=1e-6)
        assert np.abs(draw(RNG, batch) - draw(jax.random.key(1), batch)).max() > 1e-3
    assert np.abs(np.diff(latents(RNG, batch), axis=0)).max(1).min() > 1e-3
    assert sample(RNG, {"index": batch["index"]}).shape == (8, 4, 4, 1)


def test_latents_are_standard_normal():
    z = compiled("latents", make())(RNG, {"index": np.arange(5000)})
    close(z.mean(0), np.zeros(3), atol=0.06)
    close(np.cov(z, rowvar=False), np.eye(3), atol=0.08)


def test_labels_matter_where_there_are_classes(ready):
    vae, state, batch = ready
    other = batch | {"label": (batch["label"] + 1) % 4}
    encode, decode = compiled("encode", vae), compiled("decode", vae)
    sample, z = compiled("sample", vae), encode(state, batch)
    moved = [
        np.abs(encode(state, other) - z).max(),
        np.abs(decode(state, z, other) - decode(state, z, batch)).max(),
        np.abs(sample(state, RNG, other) - sample(state, RNG, batch)).max(),
    ]
    assert all(m > 1e-3 for m in moved) if vae.num_classes else all(m == 0 for m in moved)


def test_nll_is_the_logarithm_of_the_mean_weight(ready):
    """Against float64 sums over the same 20 latents, and the label's."""
    vae, state, batch = ready
    keys = jax.vmap(functools.partial(jax.random.fold_in, RNG))(batch["index"])
    keys = jax.vmap(jax.random.split)(keys)
    x = vae.likelihood.observe(keys[:, 0], batch["image"])
    label = batch["label"] if vae.num_classes else None
    mean, log_scale = vae.encoder.apply(state.variables["encoder"], x, label, train=False)
    white, p = np.asarray(x) > 0, []
    for i in range(2):
        chunk = jax.vmap(jax.random.fold_in, (0, None))(keys[:, 1], i)
        noise = jax.vmap(lambda key: jax.random.normal(key, (10, 3)), out_axes=1)(chunk)
        for e in np.asarray(noise, np.float64):
            z = mean + np.exp(log_scale) * e
            logits = vae.decoder.apply(
                state.variables["decoder"], jnp.float32(z), label, train=False
            )
            odds = 1 / (1 + np.exp(-np.float64(logits)))
            px = np.where(white, odds, 1 - odds).prod((1, 2, 3))
            ratio = np.exp((e**2 - z**2) / 2) * np.exp(log_scale)
            p.append(px * np.asarray(ratio, np.float64).prod(-1))
    found = evaluate(vae, state, batch)
    close(found["nll"], -np.log(np.mean(p, 0)).mean(), rtol=1e-5)


def test_evaluation_does_not_depend_on_the_batch(ready):
    """In halves, the second padded: the same sums as of the whole."""
    vae, state, batch = ready
    run = compiled("eval_step", vae, metrics=("nll",))
    whole, sums = run(state, batch, RNG), {}
    for part in (slice(0, 5), slice(5, 8)):
        padded = parallel.padded({name: x[part] for name, x in batch.items()}, 5)
        found = run(state, padded, RNG)
        for name, (total, count) in found.items():
            before = sums.get(name, (0, 0))
            sums[name] = before[0] + total, before[1] + count
    assert sums.keys() == whole.keys()
    for name, (total, count) in whole.items():
        close(sums[name][0], total, rtol=1e-5, atol=1e-5)
        assert sums[name][1] == count == 8


def test_evaluation_leaves_out_what_costs_if_not_asked_for():
    vae, batch = make(12), make_batch(4, 12)
    state = jax.eval_shape(functools.partial(init_state, vae), RNG, batch)
    run = functools.partial(jax.eval_shape, functools.partial(method.eval_step, vae))
    everything = run(state, batch, RNG)
    assert {"nll", "elbo", "kl", "psnr", "ssim"} <= everything.keys()
    some = jax.eval_shape(
        functools.partial(method.eval_step, vae, metrics=("elbo",)), state, batch, RNG
    )
    assert not {"nll", "psnr", "ssim"} & some.keys()


def test_scores_come_in_the_likelihoods_unit():
    means = {"elbo": -40.0, "kl": 3.0, "nll": 38.0, "psnr": 20.0}
    means |= {"mean": np.array([0.0, 1.0, 0.5]), "square": np.array([1.0, 1.005, 0.27])}
    means = {name: np.asarray(x) for name, x in means.items()}
    nats = method.scores(make(), means)
    assert nats["elbo"] == {"value": -40.0, "unit": "nats"}
    assert nats["nll"]["value"] == 38.0 and nats["nll"]["k"] == 100
    assert nats["active_units"] == {"value": 2, "of": 3}  # variances 1, .005 and .02
    bits = method.scores(make(law="discretized_logistic"), means)
    close(bits["nll"]["value"], 38 / 16 / math.log(2))
    assert bits["nll"]["unit"] == "bits/dim" and bits["kl"] == {"value": 3.0, "unit": "nats"}


@pytest.mark.parametrize("n", [8, 3])
def test_preview(ready, n):
    vae, state, batch = ready
    few = {name: x[:n] for name, x in batch.items()}
    grids = compiled("preview", vae)(state, RNG, few)
    assert grids["samples"].shape == (vae.num_classes or 8, 8, 4, 4, 1)
    pairs = np.asarray(grids["reconstructions"]).reshape(-1, 2, 4, 4, 1)
    close(pairs[:, 0], batch["image"][: len(pairs)])
    assert len(pairs) > 0


def test_diagnose():
    assert method.diagnose(1000, {"active_units": 0.0}).startswith("the posterior has collapsed")
    assert method.diagnose(1000, {"active_units": 20.0}) is None
    assert method.diagnose(100, {"active_units": 0.0}) is None


# ---- networks ----


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def config_of(name, **fields):
    config = configs.load(name)
    config.channels, config.num_classes = 1, 0
    config.update(fields)
    return config


def test_parameter_count_is_the_papers():
    vae = method.from_config(config_of("mnist_vae"))
    batch = {"image": jnp.zeros((1, 28, 28, 1))}
    state = jax.eval_shape(lambda: init_state(vae, RNG, batch))
    assert count(state.variables) == 425_284


def tensors(torch, params):
    return jax.tree.map(lambda x: torch.from_numpy(np.array(x)), params)


def condition(torch, x, label, num_classes):
    """The one-hot label behind x, (B, C) or (B, C, H, W)."""
    if not num_classes:
        return x
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(label).long(), num_classes).to(x)
    one_hot = one_hot.reshape(len(x), -1, *[1] * (x.ndim - 2))
    return torch.cat([x, one_hot.expand(-1, -1, *x.shape[2:])], 1)


def both(model, size, outputs, channels, num_classes, **fields):
    """Encoder and decoder of a family, their shaken parameters, and a batch."""
    networks = dict(latent_dim=5, num_classes=num_classes, **fields)
    encoder = model.Encoder(**networks)
    decoder = model.Decoder(image_size=size, outputs=outputs, **networks)
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (3, size, size, channels)).astype(np.float32)
    z, label = rng.normal(size=(3, 5)).astype(np.float32), np.array([2, 0, 1], np.int32)
    with_label = (label,) if num_classes else (None,)

    @jax.jit
    def start(key):
        return [
            net.init(key, arg, *with_label, train=False)["params"]
            for net, arg in ((encoder, x), (decoder, z))
        ]

    e, d = (shaken(params, 0.1) for params in start(RNG))
    mean, log_scale = jax.jit(functools.partial(encoder.apply, train=False))(
        {"params": e}, x, *with_label
    )
    images = jax.jit(functools.partial(decoder.apply, train=False))({"params": d}, z, *with_label)
    assert images.shape == (3, size, size, outputs)
    return (e, mean, log_scale), (d, images), (x, z, label)


@pytest.mark.parametrize("num_classes", [0, 4])
def test_mlp_is_torchs(num_classes):
    torch = pytest.importorskip("torch")
    (e, mean, log_scale), (d, images), (x, z, label) = both(
        vae_mlp, 6, 2, 3, num_classes, width=7, depth=2
    )
    e, d = tensors(torch, e), tensors(torch, d)
    linear = lambda layer, x: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    hidden = lambda p: [p[k] for k in sorted(p) if k not in ("mean", "log_scale", "pixels")]  # noqa: E731
    h = condition(torch, (torch.from_numpy(x).reshape(3, -1) + 1) / 2, label, num_classes)
    for layer in hidden(e):
        h = linear(layer, h).tanh()
    close(mean, linear(e["mean"], h), atol=1e-5)
    close(log_scale, linear(e["log_scale"], h), atol=1e-5)
    h = condition(torch, torch.from_numpy(z), label, num_classes)
    for layer in hidden(d):
        h = linear(layer, h).tanh()
    close(images, linear(d["pixels"], h).reshape(3, 6, 6, 2), atol=1e-5)


class TorchResnet:
    """vae_resnet in PyTorch's functions, from Flax's parameters."""

    def __init__(self, torch, params):
        self.f, self.p = torch.nn.functional, tensors(torch, params)

    def conv(self, layer, x, **fields):
        return self.f.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer.get("bias"), **fields)

    def block(self, layer, x):
        y = self.conv(layer["Conv_0"], self.f.relu(x), padding=1)
        return x + self.conv(layer["Conv_1"], self.f.relu(y), padding=1)

    def up(self, layer, x):
        kernel = layer["kernel"].permute(3, 2, 0, 1)
        return self.f.conv_transpose2d(self.f.relu(x), kernel, layer.get("bias"), 2, 1)

    def encode(self, x, stages):
        for i in range(stages):
            layer = self.p["LabelConv_0"] if i == 0 else self.p[f"Conv_{i - 1}"]
            x = self.conv(layer, x if i == 0 else self.f.relu(x), stride=2, padding=1)
            x = self.block(self.p[f"ResBlock_{i}"], x)
        x = self.f.relu(x).permute(0, 2, 3, 1).flatten(1)
        return [x @ self.p[k]["kernel"] + self.p[k]["bias"] for k in ("mean", "log_scale")]

    def decode(self, z, stages, side):
        x = z @ self.p["Dense_0"]["kernel"] + self.p["Dense_0"]["bias"]
        x = x.reshape(len(x), side, side, -1).permute(0, 3, 1, 2)
        for i in range(stages):
            x = self.up(self.p[f"ConvTranspose_{i}"], self.block(self.p[f"ResBlock_{i}"], x))
        return self.conv(self.p["Conv_0"], self.f.relu(x), padding=1).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("size", "channels", "num_classes"), [(28, 1, 0), (16, 3, 4)])
def test_resnet_is_torchs(size, channels, num_classes):
    torch = pytest.importorskip("torch")
    (e, mean, log_scale), (d, images), (x, z, label) = both(
        vae_resnet, size, 2, channels, num_classes, width=4
    )
    stages = 2 if size == 28 else 1
    encoder, decoder = TorchResnet(torch, e), TorchResnet(torch, d)
    x = condition(torch, torch.from_numpy(x).permute(0, 3, 1, 2), label, num_classes)
    for ours, theirs in zip((mean, log_scale), encoder.encode(x, stages), strict=True):
        close(ours, theirs, atol=1e-5)
    z = condition(torch, torch.from_numpy(z), label, num_classes)
    close(images, decoder.decode(z, stages, size >> stages), atol=1e-5)


@pytest.mark.parametrize("size", [30, 9])
def test_resnet_names_the_size_it_cannot_halve(size):
    with pytest.raises(UserError, match=f"size {size} "):
        make(size, model=vae_resnet).decoder.init(RNG, jnp.zeros((1, 3)), train=False)


# ---- configs ----


def test_from_config():
    config = config_of(
        "mnist_vae", objective="iwae", kl_warmup_steps=0, num_samples=5, num_classes=10
    )
    vae = method.from_config(config, "data")
    assert vae.axis_name == "data" and vae.objective == "iwae" and vae.num_samples == 5
    assert vae.encoder.num_classes == vae.decoder.num_classes == 10
    assert vae.nll_samples == config.eval.nll_samples
    colour = config_of("mnist_vae", likelihood="logistic_mixture", channels=3)
    assert method.from_config(colour).decoder.outputs == 100


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"objective": "iwea"}, "config.objective is 'iwea': take elbo or iwae"),
        ({"kl": "exact"}, "config.kl is 'exact': take analytic or sampled"),
        ({"num_samples": 0}, "num_samples is 0: it must be at least 1"),
        ({"objective": "iwae"}, "kl_warmup_steps is 20000, but .* --config.kl_warmup_steps=0"),
        ({"beta": -1.0}, "beta is -1.0: it must be at least 0"),
        ({"latent_dim": 0}, "latent_dim is 0: it must be at least 1"),
        ({"likelihood": "gausian"}, "'gausian'. Did you mean 'gaussian'"),
        ({"likelihood": "logistic_mixture", "channels": 2}, "1 or 3 channels, not 2"),
    ],
)
def test_from_config_names_what_is_wrong(fields, line):
    with pytest.raises(UserError, match=line):
        method.from_config(config_of("mnist_vae", **fields))
