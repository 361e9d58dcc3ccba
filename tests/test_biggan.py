"""BigGAN equals its twin in PyTorch, with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resnet_helpers as shared
from resnet_helpers import CLASSES, KEY, LABEL, apply, given, normal, scattered, shapes

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text
from aigc_jax.models.biggan import Discriminator, Generator

BOTH = pytest.mark.parametrize("network", [0, 1])


def networks(num_classes=CLASSES, **fields):
    """(generator, its inputs), (discriminator, its inputs), of 16 pixels."""
    fields = dict(image_size=16, width=2, num_classes=num_classes, attention=8) | fields
    g, d = Generator(chunk=5, embedding=7, **fields), Discriminator(**fields)
    label = [LABEL] if num_classes else []
    return (g, [normal(4, g.latent_dim), *label]), (d, [normal(4, 16, 16, 3, seed=1), *label])


def test_published_counts():
    z, label, image = jnp.zeros((1, 80)), jnp.zeros(1, int), jnp.zeros((1, 32, 32, 3))
    assert shared.count(Generator(num_classes=10), z, label) == 9_416_196
    assert shared.count(Discriminator(num_classes=10), image, label) == 2_415_170


@pytest.mark.parametrize(
    ("size", "latent_dim"), [(16, 60), (32, 80), (64, 100), (128, 120), (256, 140)]
)
def test_sizes(size, latent_dim):
    """The published latents of 64 and 128 pixels have 100 and 120 numbers, that of 256 has 140."""
    fields = dict(image_size=size, width=2, num_classes=CLASSES, spectral=False)
    g, d = Generator(**fields), Discriminator(**fields)
    assert g.latent_dim == latent_dim
    label = jnp.array([0, CLASSES])

    def run(key):
        images, _ = g.init_with_output(key, jnp.ones((2, latent_dim)), label, train=False)
        return images, d.init_with_output(key, images, label, train=False)[0]

    images, logits = jax.eval_shape(run, KEY)
    assert images.shape == (2, size, size, 3) and images.dtype == jnp.float32
    assert logits.shape == (2,) and logits.dtype == jnp.float32


# ---- the PyTorch twin ----


@pytest.mark.parametrize(
    ("widths", "size", "told", "fields"),
    [
        ((4, 4, 4), 16, None, dict(attention=8)),
        ((4, 4, 4, 4), 32, "concat,batch_norm", dict(attention=0, spectral=False)),
        ((16, 16, 8, 4, 2), 64, "batch_norm", dict(attention=32)),
    ],
)
def test_generator_equals_pytorch(widths, size, told, fields):
    twin = pytest.importorskip("twin_sngan")
    classes, label = (CLASSES, LABEL) if told else (0, None)
    fields = dict(chunk=5, embedding=7, condition=told or "", num_classes=classes) | fields
    g, module = Generator(size, width=1, **fields), twin.BigGenerator(widths, **fields)
    z = normal(4, 5 * len(widths))
    copied = functools.partial(twin.copy_generator, module=module)
    inputs = [z, *given(label)], copied, twin, [shared.to_torch(z), *shared.one_hot(label)]
    shared.equals_the_twin(g, *inputs)


def test_discriminator_equals_pytorch():
    twin = pytest.importorskip("twin_sngan")
    d = Discriminator(width=2, num_classes=CLASSES)
    module = twin.Discriminator((4,) * 4, num_classes=CLASSES, attention=16)
    x = normal(4, 32, 32, 3)
    copied = functools.partial(twin.copy_discriminator, module=module)
    torch_inputs = [shared.to_torch(x), *shared.one_hot(LABEL)]
    shared.equals_the_twin(d, [x, LABEL], copied, twin, torch_inputs)


# ---- conditions ----


def test_every_chunk_and_the_label_change_the_image():
    (g, (z, label)), _ = networks()
    variables = scattered(g, z, label)
    first, _ = apply(g, variables, z, label)
    for chunk in range(3):
        other = z.copy()
        other[:, 5 * chunk : 5 * chunk + 5] += 1
        assert np.abs(apply(g, variables, other, label)[0] - first).max() > 1e-3
    other, _ = apply(g, variables, z, (label + 1) % CLASSES)
    assert np.abs(other - first).max() > 1e-3


def test_label_that_says_nothing():
    """Blocks are then told zeros beside their chunks."""
    nothing = np.full(4, CLASSES, np.int32)
    (g, (z, label)), _ = networks()
    variables = scattered(g, z, label)
    found, _ = apply(g, variables, z, nothing)
    zeros = {"shared": {"kernel": np.zeros((CLASSES, 7), np.float32)}}
    deaf = variables | {"params": variables["params"] | zeros}
    np.testing.assert_allclose(found, apply(g, deaf, z, label)[0], atol=1e-6)


# ---- first weights and spectral normalisation ----


def test_first_weights_are_orthogonal():
    """Rows, or columns if they are fewer; attention begins as the identity."""
    (g, inputs), _ = networks(spectral=False)
    gain = "block0/ConditionalBatchNorm_0/gain"
    layers = ["shared", "Dense_0", gain, "block0/Conv_0", "MapAttention_0/query", "Conv_0"]
    paths = ["params/MapAttention_0/sigma", *(f"params/{layer}/kernel" for layer in layers)]
    sigma, *kernels = shared.first(g, paths, *inputs)
    assert sigma == 0
    for kernel in kernels:
        values = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)
        np.testing.assert_allclose(values, 1, atol=1e-4)


def test_all_layers_are_normalised_but_the_shared_embedding():
    (g, inputs), (d, images) = networks()
    for variables, free in ((shapes(g, *inputs), {("shared",)}), (shapes(d, *images), set())):
        vectors = {path[:-1] for path in shared.leaves(variables["spectral"])}
        assert vectors == shared.kernels(variables) - free


def test_largest_singular_values_are_one():
    """Equal to the network without it, whose kernels are divided by NumPy."""
    (module, inputs), _ = networks()
    variables = shared.converged(module, scattered(module, *inputs), *inputs)
    found, _ = apply(module, variables, *inputs)
    expected, _ = apply(module.clone(spectral=False), shared.divided(variables), *inputs)
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)


# ---- memory ----


@BOTH
def test_remat_changes_no_variable(network):
    module, inputs = networks()[network]
    assert shapes(module, *inputs) == shapes(module.clone(remat=True), *inputs)


# ---- mistakes ----


@BOTH
def test_mistakes(network):
    module, (x, label) = networks()[network]
    name = ("generator", "discriminator")[network]
    with pytest.raises(UserError, match="size 48: take 16, 32, 64, 128, 256"):
        shapes(module.clone(image_size=48), x, label)
    with pytest.raises(UserError, match="initialization is 'uniform'"):
        shapes(module.clone(initialization="uniform"), x, label)
    with pytest.raises(UserError, match=f"config.{name}.condition holds 'films'"):
        shapes(module.clone(condition="films"), x, label)
    with pytest.raises(UserError, match="reads labels, not texts"):
        shapes(module, x, Text(jnp.ones((4, 3), int), jnp.ones((4, 3), bool)))
