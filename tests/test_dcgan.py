"""DCGAN equals the same network in PyTorch, with the same weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import LabelConv, concat_label
from aigc_jax.models.dcgan import Discriminator, Generator


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def build(size, channels, num_classes, **fields):
    g = Generator(size, channels, num_classes=num_classes, **fields)
    d = Discriminator(size, num_classes=num_classes, **fields)
    z = jnp.ones((2, g.latent_dim))
    label = jnp.arange(2) if num_classes else None
    images = jnp.zeros((2, size, size, channels))

    def init(key):
        return g.init(key, z, label, train=False), d.init(key, images, label, train=False)

    return g, d, init


def test_parameter_counts_are_the_papers():
    g, d = jax.eval_shape(build(32, 3, 0)[2], jax.random.key(0))
    convolutions = 16 * (100 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    assert count(g["params"]) == convolutions + 2 * (256 + 128 + 64)
    assert count(d["params"]) == 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256) + 2 * (128 + 256)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes(size, channels):
    g, d, init = build(size, channels, 10, width=4)
    label = jnp.array([0, 9])

    def shapes(key):
        gv, dv = init(key)
        images = g.apply(gv, jnp.ones((2, 100)), label, train=False)
        return images, d.apply(dv, images, label, train=False)

    images, logits = jax.eval_shape(shapes, jax.random.key(0))
    assert images.shape == (2, size, size, channels) and images.dtype == jnp.float32
    assert logits.shape == (2,)


@pytest.mark.parametrize("size", [8, 24, 48, 512])
def test_size_it_cannot_make(size):
    with pytest.raises(UserError, match=f"size {size}: take 16, 32, 64, 128 or 256"):
        Generator(size).init(jax.random.key(0), jnp.ones((1, 100)), train=False)


def test_bfloat16_keeps_float32_at_both_ends():
    g, d, init = build(16, 1, 0, width=8, dtype=jnp.bfloat16)

    def run(key):
        gv, dv = init(key)
        images = g.apply(gv, jax.random.normal(key, (2, 100)), train=False)
        return gv, images, d.apply(dv, images, train=False)

    gv, images, logits = jax.jit(run)(jax.random.key(0))
    assert images.dtype == logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(gv)} == {jnp.dtype("float32")}
    assert 0 < jnp.abs(images).max() <= 1


def test_label_changes_both():
    g, d, init = build(16, 1, 3, width=8)

    def run(key):
        gv, dv = init(key)
        label = jnp.arange(2)  # two labels for one latent, then for one image
        images = g.apply(gv, jnp.ones((2, 100)), label, train=False)
        return images, d.apply(dv, images[jnp.zeros(2, int)], label, train=False)

    images, logits = jax.jit(run)(jax.random.key(0))
    assert jnp.abs(images[0] - images[1]).max() > 1e-6
    assert jnp.abs(logits[0] - logits[1]) > 1e-9


@pytest.mark.parametrize("channels", [1, 3])
def test_label_conv_is_the_convolution_of_concatenated_planes(channels):
    layer = LabelConv(5, 7, kernel_size=4, stride=2, padding=1)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (6, 8, 10, channels))
    label = jax.random.randint(keys[1], (6,), 0, 5)
    variables = jax.jit(layer.init)(keys[2], x, label)

    def concatenated(variables, x):
        x = concat_label(x, label, 5)
        shape = dict(window_strides=(2, 2), padding=((1, 1), (1, 1)))
        kernel = variables["params"]["kernel"]
        return jax.lax.conv_general_dilated(
            x, kernel, **shape, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    close = partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4)
    close(layer.apply(variables, x, label), concatenated(variables, x))
    gradients = [
        jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1))(variables, x)
        for f in (lambda v, x: layer.apply(v, x, label), concatenated)
    ]
    jax.tree.map(close, *gradients)


# ---- the PyTorch twin ----


def torch_networks(channels):
    from torch import nn

    def bn_relu(n):
        return [nn.BatchNorm2d(n), nn.ReLU()]

    def conv(i, o, first=False):
        norm = [] if first else [nn.BatchNorm2d(o)]
        return [nn.Conv2d(i, o, 4, 2, 1, bias=False), *norm, nn.LeakyReLU(0.2)]

    up = nn.ConvTranspose2d
    g = nn.Sequential(
        up(100, 256, 4, 1, 0, bias=False), *bn_relu(256),
        up(256, 128, 4, 2, 1, bias=False), *bn_relu(128),
        up(128, 64, 4, 2, 1, bias=False), *bn_relu(64),
        up(64, channels, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    d = nn.Sequential(
        *conv(channels, 64, first=True), *conv(64, 128), *conv(128, 256),
        nn.Conv2d(256, 1, 4, 1, 0, bias=False),
    )  # fmt: skip
    return g, d


def to_flax(network):
    """PyTorch's weights as this library's variables: kernels to (kh, kw, in, out) of the conv."""
    params, stats, n = {}, {}, {"Conv": -1, "ConvTranspose": 0, "BatchNorm": 0}
    for layer in network:
        kind = type(layer).__name__.removesuffix("2d")
        if kind not in n:
            continue
        name = f"{kind}_{n[kind]}" if n[kind] >= 0 else "LabelConv_0"
        n[kind] += 1
        if kind == "BatchNorm":
            params[name] = {"scale": layer.weight, "bias": layer.bias}
            stats[name] = {"mean": layer.running_mean, "var": layer.running_var}
        else:
            params[name] = {"kernel": layer.weight.permute(2, 3, 1, 0)}
    to_jax = lambda tree: jax.tree.map(lambda x: jnp.array(x.detach().numpy()), tree)  # noqa: E731
    return {"params": to_jax(params), "batch_stats": to_jax(stats)}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_pytorch(channels, train):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    g, d = torch_networks(channels)
    for layer in [*g, *d]:  # statistics and affine terms that a mistake would show in
        if isinstance(layer, torch.nn.BatchNorm2d):
            for x in (layer.weight, layer.running_var):
                torch.nn.init.uniform_(x, 0.5, 2)
            for x in (layer.bias, layer.running_mean):
                torch.nn.init.normal_(x)
    gv, dv = to_flax(g), to_flax(d)
    z = np.random.default_rng(0).normal(size=(8, 100)).astype(np.float32)
    with torch.no_grad():
        g.train(train), d.train(train)
        images = g(torch.from_numpy(z)[:, :, None, None])
        logits = d(images)

    @jax.jit
    def run(gv, dv):
        apply = dict(train=train, mutable=["batch_stats"])
        images, g_stats = Generator(32, channels).apply(gv, z, **apply)
        return images, g_stats, *Discriminator(32).apply(dv, images, **apply)

    ours, g_stats, our_logits, d_stats = run(gv, dv)
    np.testing.assert_allclose(ours, images.permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(our_logits, logits.flatten(), atol=1e-4)
    for ours, theirs in ((g_stats, to_flax(g)), (d_stats, to_flax(d))):  # after a training pass
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
            ours["batch_stats"],
            theirs["batch_stats"],
        )
