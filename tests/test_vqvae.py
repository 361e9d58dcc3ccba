"""The VQ-VAE: its networks and its step against PyTorch, its layouts, and what it reports."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from aigc_jax import adversary, parallel
from aigc_jax import config as configs
from aigc_jax.errors import UserError
from aigc_jax.methods import vqvae as method
from aigc_jax.methods.vqvae import VQVAE
from aigc_jax.metrics.spectrum import power_spectrum, sharpness
from aigc_jax.models.patchgan import Discriminator
from aigc_jax.models.vqvae import Autoencoder, Decoder, Encoder, autoencoder

RNG = jax.random.key(0)
SIZE, CODES, DIM = 16, 16, 4

# Compiled: called one operation at a time, they are slow.
init_state, train_step, encode, decode, preview, eval_step = (
    jax.jit(getattr(method, name), static_argnums=0)
    for name in ("init_state", "train_step", "encode", "decode", "preview", "eval_step")
)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, variables, x):
    return module.apply(variables, x, train=False)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def make(size=CODES, channels=1, **fields):
    networks = Autoencoder(
        Encoder(width=8, blocks=1, block_width=4, embedding_dim=DIM),
        Decoder(channels=channels, width=8, blocks=1, block_width=4),
    )
    return VQVAE(networks, **dict(tx=optax.sgd(0.1), size=size) | fields)


PLAIN = make(data_variance=0.3)  # one program for several tests


def make_batch(n=8, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (n, SIZE, SIZE, channels)).astype(np.float32),
        "index": np.arange(n, dtype=np.int32),
        "valid": np.ones(n, np.float32),
    }


# ---- the networks ----


def sonnet_torch(channels=3, width=128, blocks=2, block_width=32, dim=64):
    """The table of Sonnet's example, in PyTorch: (encoder, decoder)."""
    from torch import nn

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    def stack():
        def block():
            return Residual(
                nn.ReLU(), nn.Conv2d(width, block_width, 3, padding=1),
                nn.ReLU(), nn.Conv2d(block_width, width, 1),
            )  # fmt: skip

        return [*(block() for _ in range(blocks)), nn.ReLU()]

    encoder = nn.Sequential(
        nn.Conv2d(channels, width // 2, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        *stack(),
        nn.Conv2d(width, dim, 1),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Conv2d(dim, width, 3, padding=1),
        *stack(),
        nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(width // 2, channels, 4, 2, 1),
    )  # fmt: skip
    return encoder, decoder


def in_order(params):
    """The layers of a network's parameters, in the order in which they are applied."""
    stacks = [v for k, v in params.items() if k.startswith("ResidualStack")]
    inner = [stacks[0][f"Conv_{i}"] for i in range(len(stacks[0]))]
    convs = [params[f"Conv_{i}"] for i in range(sum(k.startswith("Conv_") for k in params))]
    ups = [params[f"ConvTranspose_{i}"] for i in range(len(params) - len(convs) - 1)]
    return [*convs, *inner, *ups] if ups else [*convs[:-1], *inner, convs[-1]]


def load_torch(params, network):
    """Copies the parameters into the twin."""
    import torch

    layers = [layer for layer in network.modules() if hasattr(layer, "kernel_size")]
    for ours, theirs in zip(in_order(params), layers, strict=True):
        # HWIO -> OIHW; of a transposed convolution, H W out in -> in out H W: the same axes.
        kernel = np.transpose(ours["kernel"], (3, 2, 0, 1))
        assert kernel.shape == tuple(theirs.weight.shape)
        with torch.no_grad():
            theirs.weight.copy_(torch.tensor(kernel))
            theirs.bias.copy_(torch.tensor(np.asarray(ours["bias"])))


def randomised(variables):
    """Biases that aren't zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), variables)


def nchw(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def nhwc(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def twins(spec, variables, channels):
    pair = sonnet_torch(channels, width=8, blocks=1, block_width=4, dim=DIM)
    for name, network in zip(("encoder", "decoder"), pair, strict=True):
        load_torch(variables[name]["params"], network)
    return pair


def test_sonnets_network_by_the_default_fields():
    encoder, decoder = Encoder(), Decoder()
    image = jnp.zeros((1, 32, 32, 3))
    z, encoder_variables = jax.eval_shape(lambda: encoder.init_with_output(RNG, image))
    decoded, decoder_variables = jax.eval_shape(
        lambda: decoder.init_with_output(RNG, jnp.zeros(z.shape))
    )
    assert z.shape == (1, 8, 8, 64) and decoded.shape == image.shape
    assert count((encoder_variables, decoder_variables)) == 662_723


def test_the_shipped_config_is_sonnets_network_or_says_its_width():
    config = configs.load("cifar10_vqvae")
    config.channels = 3
    config.encoder.width = config.decoder.width = 128
    spec = method.from_config(config)
    batch = {"image": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)}
    state = jax.eval_shape(functools.partial(method.init_state, spec), RNG, batch)
    assert count(state.variables) == 662_723
    assert state.codebook.embeddings.size == 32_768


def test_networks_equal_pytorch():
    pytest.importorskip("torch")
    channels = 3
    spec, batch = make(channels=channels), make_batch(2, channels)
    variables = randomised(init_state(spec, RNG, batch).variables)
    encoder, decoder = twins(spec, variables, channels)
    z = apply(spec.autoencoder.encoder, variables["encoder"], batch["image"])
    np.testing.assert_allclose(z, nhwc(encoder(nchw(batch["image"]))), atol=1e-5)
    images = apply(spec.autoencoder.decoder, variables["decoder"], z)
    np.testing.assert_allclose(images, nhwc(decoder(nchw(z))), atol=1e-5)


@pytest.mark.parametrize("halvings, side", [(1, 8), (2, 4), (3, 2)])
def test_halvings(halvings, side):
    encoder, decoder = Encoder(8, halvings, 1, 4, DIM), Decoder(3, 8, halvings, 1, 4)

    def both():
        z, _ = encoder.init_with_output(RNG, jnp.zeros((2, SIZE, SIZE, 3)), train=False)
        return z, decoder.init_with_output(RNG, z, train=False)[0]

    z, images = jax.eval_shape(both)
    assert z.shape == (2, side, side, DIM) and images.shape == (2, SIZE, SIZE, 3)


def test_bfloat16_keeps_float32_at_both_ends():
    encoder = Encoder(8, 2, 1, 4, DIM, jnp.bfloat16)
    decoder = Decoder(1, 8, 2, 1, 4, jnp.bfloat16)

    def both():
        z, variables = encoder.init_with_output(RNG, jnp.ones((1, SIZE, SIZE, 1)), train=False)
        images, more = decoder.init_with_output(RNG, z, train=False)
        return z, images, variables, more

    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(both))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"halvings": 0}, "halvings is 0"),
        ({"halvings": 5}, r"can't halve 16x16 images 5 times: take config.image_size a multiple"),
    ],
)
def test_sides_that_cannot_be_halved(fields, line):
    with pytest.raises(UserError, match=line):
        Encoder(**fields).init(RNG, jnp.zeros((1, SIZE, SIZE, 1)))


# ---- the step ----


def test_step_equals_pytorchs_autograd():
    """The straight-through gradient, the commitment and the NMSE, as everyone writes them."""
    torch = pytest.importorskip("torch")
    spec, batch = PLAIN, make_batch()
    state = init_state(spec, RNG, batch)
    state = state.replace(
        variables=randomised(state.variables),
        codebook=state.codebook.replace(steps=jnp.ones((), jnp.int32)),  # started
    )
    new, metrics = train_step(spec, state, batch, RNG)

    encoder, decoder = twins(spec, state.variables, 1)
    x = nchw(batch["image"])
    z = encoder(x).permute(0, 2, 3, 1)
    codes = torch.cdist(z.reshape(-1, DIM), torch.tensor(np.array(state.codebook.embeddings)))
    codes = codes.argmin(1)
    q = torch.tensor(np.array(state.codebook.embeddings))[codes].reshape(z.shape)
    straight = z + (q - z).detach()
    recon = decoder(straight.permute(0, 3, 1, 2))
    reconstruction = ((recon - x) ** 2).mean() / 0.3
    commitment = ((q.detach() - z) ** 2).mean()
    loss = reconstruction + 0.25 * commitment
    loss.backward()

    np.testing.assert_allclose(metrics["reconstruction"], reconstruction.item(), rtol=1e-4)
    np.testing.assert_allclose(metrics["commitment"], commitment.item(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-4)
    grads = jax.tree.map(lambda a, b: (a - b) / 0.1, state.variables, new.variables)
    square = 0.0
    for name, twin in (("encoder", encoder), ("decoder", decoder)):
        layers = [layer for layer in twin.modules() if hasattr(layer, "kernel_size")]
        for ours, theirs in zip(in_order(grads[name]["params"]), layers, strict=True):
            kernel = np.transpose(ours["kernel"], (3, 2, 0, 1))
            scale = theirs.weight.grad.abs().max().item()
            assert scale > 0
            np.testing.assert_allclose(kernel, theirs.weight.grad, atol=1e-4 * max(scale, 1e-2))
            np.testing.assert_allclose(ours["bias"], theirs.bias.grad, atol=1e-5)
            square += (theirs.weight.grad**2).sum().item() + (theirs.bias.grad**2).sum().item()
    np.testing.assert_allclose(metrics["grad_norm"], math.sqrt(square), rtol=1e-4)


@pytest.mark.parametrize("name, value", [("l2", 2.5 / 4), ("l1", 1.5 / 2)])
def test_reconstruction_is_in_units_of_the_data(name, value):
    difference = jnp.array([-1.0, 2.0])
    np.testing.assert_allclose(method._ERRORS[name](difference, variance=4.0), value)


def test_codes_start_as_vectors_of_the_first_batch_and_follow():
    spec, batch = PLAIN, make_batch()
    state = init_state(spec, RNG, batch)
    z = apply(spec.autoencoder.encoder, state.variables["encoder"], batch["image"])
    z = np.asarray(z).reshape(-1, DIM)
    new, metrics = train_step(spec, state, batch, RNG)
    assert metrics["codebook_use"] == 1  # each is a vector's own
    assert 1 < metrics["perplexity"] <= CODES
    # After one update each is the mean of the vectors nearest to where it started.
    assert np.all(np.asarray(new.codebook.embeddings).max(0) <= z.max(0))
    np.testing.assert_allclose(new.codebook.counts.sum(), len(z), rtol=1e-4)
    np.testing.assert_allclose(new.codebook.sums.sum(0), z.sum(0), rtol=1e-3, atol=1e-3)
    # What is drawn follows the step.
    other, _ = train_step(spec, state.replace(step=state.step + 1), batch, RNG)
    assert not np.allclose(other.codebook.embeddings, new.codebook.embeddings)


def adversarial(axis_name=None, **fields):
    return adversary.Adversary(
        discriminator=Discriminator(width=4, num_layers=1, axis_name=axis_name),
        tx=optax.sgd(0.05),
        axis_name=axis_name,
        **fields,
    )


@functools.cache
def three_steps(mode, devices, with_adversary):
    """State and metrics after three steps, and how many codes were revived in them."""
    layout = parallel.layout(mode, jax.devices()[:devices])
    axis_name = layout.axis_name
    judge = adversarial(axis_name) if with_adversary else None
    averages = dict(revive_below=0.5, ema_half_life=100.0)
    spec = make(adversary=judge, axis_name=axis_name, **averages)
    state = layout.place_state(init_state(spec, jax.random.key(1), make_batch(1)))
    step = layout.compile(functools.partial(method.train_step, spec))
    revived = 0
    for t in range(3):
        batch = layout.place_batch({"image": make_batch(16, seed=t)["image"]})
        state, metrics = step(state, batch, RNG)
        revived += int(metrics["revived"])
    return jax.tree.map(np.asarray, (state, metrics)), revived


@pytest.mark.parametrize("mode, with_adversary", [("jit", False), ("pmap", True)])
def test_every_layout_has_the_same_state(mode, with_adversary):
    one, revived = three_steps("jit", 1, with_adversary)
    eight, revived_too = three_steps(mode, 8, with_adversary)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), one, eight)
    assert revived == revived_too > 0


def differ(a, b):
    """The largest difference of two trees."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))


def test_adversary_moves_the_networks_and_learns_from_its_start_on():
    batch = make_batch()
    sharp = make(adversary=adversarial(start=1), data_variance=0.3)
    state = init_state(sharp, RNG, batch)
    for started in (False, True):
        new, metrics = train_step(sharp, state, batch, RNG)
        bare, _ = train_step(PLAIN, state.replace(adversary=None), batch, RNG)
        judges = new.adversary.variables["params"], state.adversary.variables["params"]
        if started:
            assert differ(new.variables, bare.variables) > 1e-5 and differ(*judges) > 1e-6
        else:
            assert differ(new.variables, bare.variables) < 1e-6 and differ(*judges) == 0
        assert differ(new.codebook, bare.codebook) < 1e-5
        state = new
    assert {"g_loss", "d_loss", "adaptive_weight"} <= metrics.keys()


def blobs(n=64, seed=0):
    """Images of one bright square each, somewhere."""
    rng = np.random.default_rng(seed)
    image = -np.ones((n, SIZE, SIZE, 1), np.float32)
    for x, (row, column) in zip(image, rng.integers(0, SIZE - 5, (n, 2)), strict=True):
        x[row : row + 5, column : column + 5] = 1
    return {"image": image, "index": np.arange(n, dtype=np.int32), "valid": np.ones(n, np.float32)}


@pytest.fixture(scope="module")
def trained():
    """A tiny one, on squares."""
    spec = make(tx=optax.adam(5e-3), ema_half_life=640.0, data_variance=0.36)
    state = init_state(spec, RNG, blobs())
    seen = []
    for t in range(150):
        state, metrics = train_step(spec, state, blobs(seed=t), RNG)
        seen.append(jax.tree.map(float, metrics))
    return spec, state, seen


def test_training_reduces_the_loss_and_uses_the_codes(trained):
    _, _, seen = trained
    assert seen[-1]["loss"] < 0.4 * seen[0]["loss"]
    assert seen[-1]["codebook_use"] > 0.5
    assert 1 < seen[-1]["perplexity"] <= CODES
    assert seen[-1]["psnr"] > seen[0]["psnr"] + 3
    assert all(math.isfinite(value) for metrics in seen for value in metrics.values())


# ---- what it is used for ----


def test_encode_and_decode(trained):
    spec, state, _ = trained
    batch = blobs(8, seed=999)
    codes = encode(spec, state, batch)
    assert codes.shape == (8, 4, 4) and codes.dtype == jnp.int32
    assert codes.min() >= 0 and codes.max() < CODES
    images = decode(spec, state, codes, batch)
    assert images.shape == batch["image"].shape and jnp.abs(images).max() <= 1
    assert jnp.mean((images - batch["image"]) ** 2) < 0.36 / 2
    # `weights` are all that others need, and are the averaged ones.
    weights = method.weights(state)
    assert weights.keys() == {"encoder", "decoder", "codebook"}
    assert weights["encoder"] is state.ema["encoder"]
    np.testing.assert_array_equal(spec.autoencoder.to_codes(weights, batch["image"]), codes)
    assert method.weights(state.replace(ema=None))["encoder"] is state.variables["encoder"]


def test_scores_of_a_test_set_in_parts(trained):
    """Perplexity is that of all codes together, whatever the batches; padding doesn't count."""
    spec, state, _ = trained
    batch = blobs(12, seed=7)
    totals = {}
    for rows in (slice(0, 8), slice(8, 12)):
        part = parallel.padded({name: x[rows] for name, x in batch.items()}, 8)
        for name, (total, number) in eval_step(spec, state, part, RNG).items():
            old = totals.get(name, (0, 0))
            totals[name] = old[0] + np.asarray(total, np.float64), old[1] + number
    means = {name: total / number for name, (total, number) in totals.items()}
    found = method.scores(spec, means)
    codes = np.asarray(encode(spec, state, batch))
    used, counts = np.unique(codes, return_counts=True)
    p = counts / counts.sum()
    np.testing.assert_allclose(
        found["perplexity"]["value"], np.exp(-(p * np.log(p)).sum()), rtol=1e-4
    )
    assert found["codebook_use"]["value"] == len(used) / CODES
    images = np.asarray(decode(spec, state, codes, batch), np.float64)
    error = ((images - batch["image"]) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found["psnr"]["value"], (10 * np.log10(4 / error)).mean(), rtol=1e-4)
    assert 0 < found["ssim"]["value"] < 1
    power = power_spectrum(batch["image"]), power_spectrum(jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(found["sharpness"]["value"], sharpness(*power), rtol=1e-4)


@pytest.mark.parametrize("n, rows, columns", [(64, 16, 8), (8, 2, 8), (3, 1, 6), (6, 1, 8)])
def test_preview_shows_images_beside_reconstructions(trained, n, rows, columns):
    spec, state, _ = trained
    batch = blobs(n)
    grid = preview(spec, state, RNG, batch)["reconstructions"]
    assert grid.shape == (rows, columns, SIZE, SIZE, 1)
    decoded = decode(spec, state, encode(spec, state, batch), batch)
    np.testing.assert_array_equal(grid[-1, 2], batch["image"][(rows - 1) * columns // 2 + 1])
    np.testing.assert_allclose(grid[0, 3], decoded[1], atol=1e-6)


def test_diagnose():
    healthy = dict(perplexity=300.0, codebook_use=0.9, grad_norm=0.1)
    assert method.diagnose(1000, healthy) is None
    assert method.diagnose(10, healthy | {"perplexity": 1.0}) is None
    assert "collapsed" in method.diagnose(1000, healthy | {"perplexity": 1.5})
    assert "collapsed" in method.diagnose(1000, healthy | {"codebook_use": 0.01})
    assert "explode" in method.diagnose(1000, healthy | {"grad_norm": 1e4})


def small_config(**fields):
    config = configs.load("cifar10_vqvae")
    config.channels, config.image_size, config.num_classes = 1, SIZE, 0
    for name, value in fields.items():
        config[name] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def test_from_config():
    config = small_config()
    config.codebook.size = 32
    spec = method.from_config(config, "data")
    assert (spec.size, spec.commitment, spec.decay, spec.axis_name) == (32, 0.25, 0.99, "data")
    assert spec.adversary is None and spec.autoencoder.decoder.channels == 1
    assert spec.autoencoder == autoencoder(config, "data")


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"reconstruction": "l3"}, "config.reconstruction is 'l3'"),
        ({"encoder": {"name": "vqvea"}}, "Unknown model 'vqvea'. Did you mean 'vqvae'"),
        ({"encoder": {"name": "vqvae", "widht": 3}}, "no field 'widht'. Did you mean 'width'"),
        ({"codebook": {"size": 1, "decay": 0.5}}, "size 1 and decay 0.5"),
        ({"codebook": {"size": 8, "decay": 1.0}}, "size 8 and decay 1.0"),
    ],
)
def test_from_config_names_what_is_wrong(fields, line):
    with pytest.raises(UserError, match=line):
        method.from_config(small_config(**fields))


def test_networks_that_do_not_fit():
    config = small_config()
    config.decoder.halvings = 3
    with pytest.raises(UserError, match=r"makes 32x32 images of 16x16 ones"):
        jax.eval_shape(
            functools.partial(method.init_state, method.from_config(config)), RNG, make_batch()
        )
