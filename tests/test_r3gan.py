"""R3GAN equals its twin in PyTorch, in values and in the gradients of its penalties."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text
from aigc_jax.losses import penalties
from aigc_jax.models.r3gan import Discriminator, Generator
from aigc_jax.parallel import interleave

KEY = jax.random.key(0)
TINY = dict(image_size=16, width=12, group_width=4, blocks=2)
TINIEST = TINY | dict(image_size=8, blocks=1)
LARGER = dict(image_size=64, width=8, group_width=4, blocks=1)  # its last stage is of 4 channels
CLASSES = 3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scattered(module, *args):
    """Variables of the module, each parameter away from its first value."""
    shapes = jax.eval_shape(functools.partial(module.init, train=False), KEY, *args)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    # Kernels keep the size of a signal, biases are felt.
    scales = [0.3 if x.ndim == 1 else float(np.prod(x.shape[:-1])) ** -0.5 for x in leaves]
    leaves = [scale * normal(*leaves[i].shape, seed=i) for i, scale in enumerate(scales)]
    return {"params": jax.tree.unflatten(tree, leaves)}


@functools.cache
def compiled(module, groups=None):
    fields = {} if groups is None else {"groups": groups}
    return jax.jit(functools.partial(module.apply, train=True, **fields))


def apply(module, variables, *args, groups=None):
    return jax.device_get(compiled(module, groups)(variables, *args))


def networks(num_classes, size=TINIEST, condition="projection", **fields):
    """(generator, its input), (discriminator, its input), for labels of every kind but the last."""
    g = Generator(latent_dim=6, num_classes=num_classes, **size, **fields)
    d = Discriminator(num_classes=num_classes, condition=condition, **size, **fields)
    label = (np.arange(4, dtype=np.int32) % num_classes,) if num_classes else ()
    side = size["image_size"]
    return (g, (normal(4, 6), *label)), (d, (normal(4, side, side, 3, seed=1), *label))


# ---- counts and shapes ----


def count(module, *args):
    init = functools.partial(module.init, train=False)
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(init, KEY, *args)["params"]))


def block(width):
    """1x1 to twice the width, 3x3 in groups of 16, 1x1 back, two biases."""
    return width * 2 * width + 2 * width * 16 * 9 + 2 * width * width + 2 * 2 * width


def test_published_counts_at_32():
    """768 channels, 4 stages of 2 blocks, ten classes: 20.78 and 21.28 million."""
    assert block(768) == 2_583_552
    z, label, image = jnp.zeros((1, 64)), jnp.zeros(1, int), jnp.zeros((1, 32, 32, 3))
    blocks = 8 * block(768)
    basis, rgb = 16 * 768, 3 * 768
    generator = 10 * 64 + (64 + 64) * 768 + basis + blocks + rgb
    assert generator == count(Generator(num_classes=10), z, label) == 20_781_952
    discriminator = rgb + blocks + basis + 768 * 768 + 10 * 768
    assert discriminator == count(Discriminator(num_classes=10), image, label) == 21_280_512


@pytest.mark.parametrize(
    ("size", "widths", "millions"),
    [(64, [768] * 4 + [384], (22.43, 22.38)), (256, [768] * 4 + [384, 192, 96], (23.06, 23.01))],
)
def test_published_counts_of_faces(size, widths, millions):
    blocks = sum(2 * block(w) for w in widths)
    changes = sum(a * b for a, b in itertools.pairwise(widths) if a != b)
    both = 16 * 768 + blocks + changes + 3 * widths[-1]
    generator = count(Generator(size), jnp.zeros((1, 64)))
    discriminator = count(Discriminator(size), jnp.zeros((1, size, size, 3)))
    assert (generator, discriminator) == (both + 64 * 768, both + 768)
    assert (round(generator / 1e6, 2), round(discriminator / 1e6, 2)) == millions


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes(size, channels):
    fields = dict(width=16, group_width=4, blocks=1, num_classes=CLASSES)
    g, d = Generator(size, channels, **fields), Discriminator(size, **fields)
    label = jnp.array([0, CLASSES])

    def run(key):
        images, _ = g.init_with_output(key, jnp.ones((2, 64)), label, train=False)
        return images, d.init_with_output(key, images, label, train=False)[0]

    images, logits = jax.eval_shape(run, KEY)
    assert images.shape == (2, size, size, channels) and images.dtype == jnp.float32
    assert logits.shape == (2,) and logits.dtype == jnp.float32


# ---- first weights ----


def test_signals_keep_their_variance_at_first():
    """Blocks are the identity; every other layer keeps the variance, filters apart."""
    fields = dict(image_size=8, width=64, blocks=2)
    g, d = Generator(channels=16, **fields), Discriminator(**fields)
    z, images = normal(64, 64), normal(64, 8, 8, 3, seed=1)
    outputs = dict(train=False, capture_intermediates=True, mutable=["intermediates"])

    @jax.jit
    def run(key):
        made = g.apply(g.init(key, z, train=False), z, **outputs)[1]
        return made, d.apply(d.init(key, images, train=False), images, **outputs)[1]

    made, read = (x["intermediates"] for x in jax.device_get(run(KEY)))
    variance = lambda found: np.mean(np.square(found["__call__"][0]))  # noqa: E731
    close = functools.partial(np.testing.assert_allclose, rtol=0.35)
    for network, side in itertools.product((made, read), (4, 8)):
        first, second = (network[f"block_{side}_{i}"] for i in range(2))
        assert not first["Conv_2"]["__call__"][0].any()
        np.testing.assert_array_equal(first["__call__"][0], second["__call__"][0])
        gain = 4**-0.5 * 2 / 1.04  # in a network of four blocks, before an activation
        close(variance(first["Conv_0"]), gain * variance(first))
        close(variance(first["Conv_1"]), gain * 4**-0.5 * variance(first))
    close(variance(made["block_4_0"]), 1)
    close(variance(made["image"]), variance(made["block_8_1"]))
    close(variance(made["image"]), 0.61**2)  # what the filter, up, leaves of white noise
    close(variance(read["image"]), 1)
    close(variance(read["block_4_0"]), (20 / 64) ** 2)  # and down
    close(variance(read["basis"]), variance(read["block_4_1"]))
    logits = read["__call__"][0]
    close(np.mean(np.square(logits)), variance(read["basis"]), rtol=0.6)


def test_labels_begin_as_published():
    (g, inputs), (d, images) = networks(CLASSES, size=TINIEST | dict(width=600))

    @jax.jit
    def first(key):
        variables = g.init(key, *inputs, train=True), d.init(key, *images, train=True)
        return [x["params"]["label"]["kernel"] for x in variables]

    of_g, of_d = first(KEY)
    assert of_g.shape == (CLASSES, 6) and of_d.shape == (CLASSES, 600)
    assert abs(of_d.std() * (600 * CLASSES) ** 0.5 - 1) < 0.1


# ---- the PyTorch twin ----


def widths(size):
    stages = size["image_size"].bit_length() - 2
    return [size["width"] >> max(0, i - 3) for i in range(stages)]


def twins(num_classes, size, condition):
    twin = pytest.importorskip("twin_r3gan")
    shape = (widths(size), size["group_width"], size["blocks"], 3)
    g = twin.Generator(*shape, latent_dim=6, num_classes=num_classes)
    told = condition if num_classes else ""
    return twin, g, twin.Discriminator(*shape, num_classes=num_classes, condition=told)


def to_torch(x, dtype=None):
    import torch

    return torch.tensor(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x, dtype=dtype)


def one_hot(labels, dtype=np.float32):
    return [np.eye(CLASSES + 1, CLASSES, dtype=dtype)[label] for label in labels]


@pytest.mark.parametrize("size", [TINY, LARGER], ids=["16", "64"])
@pytest.mark.parametrize(
    ("num_classes", "condition"), [(0, "projection"), (CLASSES, "projection"), (CLASSES, "concat")]
)
def test_equals_pytorch(num_classes, condition, size):
    (g, (z, *label)), (d, (images, *_)) = networks(num_classes, size, condition)
    twin, torch_g, torch_d = twins(num_classes, size, condition)
    label = [np.array([1, CLASSES, 0, 2], np.int32)] if num_classes else label
    hot = [to_torch(x) for x in one_hot(label)]
    gv, dv = scattered(g, z, *label), scattered(d, images, *label)
    made = twin.copy_generator(torch_g, gv)(to_torch(z), *hot).detach()
    told = twin.copy_discriminator(torch_d, dv)(to_torch(images), *hot).detach()
    assert 0.05 < made.std() < 20 and 0.05 < told.std() < 20
    np.testing.assert_allclose(apply(g, gv, z, *label), made.permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(apply(d, dv, images, *label), told, atol=1e-4)


@pytest.mark.parametrize(
    ("num_classes", "size"), [(0, TINIEST | dict(blocks=2)), (CLASSES, TINY | dict(blocks=1))]
)
def test_gradients_of_the_loss_and_its_penalties_are_pytorchs(num_classes, size):
    """-log sigmoid(D(x) - D(y)) + R1 + R2, all at once, by D's parameters; PyTorch in float64."""
    twin, _, torch_d = twins(num_classes, size, "projection")
    _, (d, (real, *label)) = networks(num_classes, size)
    fake = normal(*real.shape, seed=2)
    variables = scattered(d, real, *label)
    gamma = 0.7

    @jax.jit
    def gradients(params):
        def loss(params):
            critic = lambda x: d.apply({"params": params}, x, *label, train=True)  # noqa: E731
            adversarial = jnp.mean(jax.nn.softplus(critic(fake) - critic(real)))
            return adversarial + gamma * (penalties.r1(critic, real) + penalties.r2(critic, fake))

        return jax.grad(loss)(params)

    torch = twin.torch
    torch_d = twin.copy_discriminator(torch_d, variables).double()
    hot = [to_torch(x, torch.float64) for x in one_hot(label)]
    pair = [to_torch(x, torch.float64).requires_grad_() for x in (real, fake)]
    logits = [torch_d(x, *hot) for x in pair]
    loss = torch.nn.functional.softplus(logits[1] - logits[0]).mean()
    for x, y in zip(pair, logits, strict=True):
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        loss = loss + gamma / 2 * slope.square().sum((1, 2, 3)).mean()
    loss.backward()
    ours = twin.named(torch_d, jax.device_get(gradients(variables["params"])))
    for name, x in torch_d.named_parameters():
        assert x.grad.norm() > 1e-3
        assert (ours[name] - x.grad).norm() < 1e-3 * x.grad.norm(), name


# ---- conditions ----


@pytest.mark.parametrize("condition", ["projection", "concat", "concat,projection"])
def test_groups_and_several_labels_are_passes_of_their_own(condition):
    """Real and fake by turns, with two labels each: four logits a pair."""
    _, (d, (real, label)) = networks(CLASSES, condition=condition)
    fake, wrong = normal(*real.shape, seed=2), (label + 1) % CLASSES
    variables = scattered(d, real, label)
    both = apply(d, variables, interleave(real, fake), interleave(label, wrong), groups=2)
    both = both.reshape(4, 2, 2)
    for i, images in enumerate((real, fake)):
        for j, told in enumerate((label, wrong)):
            alone = apply(d, variables, images, told)
            np.testing.assert_allclose(both[:, i, j], alone, atol=1e-5)


@pytest.mark.parametrize("condition", ["auxiliary", "projection,auxiliary"])
def test_auxiliary_sows_the_classes_of_images(condition):
    _, (d, (images, label)) = networks(CLASSES, condition=condition)
    variables = scattered(d, images, label)
    sow = functools.partial(d.apply, train=True, mutable=["auxiliary"])
    logits, sown = jax.jit(sow)(variables, images, label)
    (classes,) = sown["auxiliary"]["logits"]
    assert logits.shape == (4,) and classes.shape == (4, CLASSES)
    assert classes.dtype == jnp.float32 and classes.std() > 0.01
    other, sown = jax.jit(sow)(variables, images, (label + 1) % CLASSES)
    np.testing.assert_array_equal(classes, sown["auxiliary"]["logits"][0])
    assert bool((logits == other).all()) == (condition == "auxiliary")


def test_label_changes_both():
    for network, (first, label) in networks(CLASSES):
        variables = scattered(network, first, label)
        others = [apply(network, variables, first, (label + i) % CLASSES) for i in range(2)]
        assert np.abs(others[0] - others[1]).max() > 1e-3


def test_label_that_says_nothing():
    """It adds nothing to the latent, nor to the image; the projection is then 0."""
    nothing = np.full(4, CLASSES, np.int32)
    (g, (z, label)), (d, (images, _)) = networks(CLASSES)
    variables = scattered(g, z, label)
    found = apply(g, variables, z, nothing)
    without = jax.tree.map(jnp.zeros_like, variables["params"]["label"])
    variables = {"params": variables["params"] | {"label": without}}
    np.testing.assert_array_equal(found, apply(g, variables, z, label))
    assert not apply(d, scattered(d, images, label), images, nothing).any()
    _, (d, _) = networks(CLASSES, condition="concat")
    variables = scattered(d, images, label)
    found = apply(d, variables, images, nothing)
    kernel = jnp.asarray(variables["params"]["image"]["kernel"]).at[:, :, 3:].set(0)
    variables = {"params": variables["params"] | {"image": {"kernel": kernel}}}
    np.testing.assert_allclose(found, apply(d, variables, images, label), atol=1e-6)


@pytest.mark.parametrize("network", [0, 1])
def test_no_way_to_be_told_ignores_the_label(network):
    told = dict(image_size=8, width=8, group_width=4, num_classes=CLASSES, condition="")
    module = (Generator, Discriminator)[network](**told)
    x = normal(4, *((64,), (8, 8, 3))[network])
    assert "label" not in init(module, x, np.arange(4) % CLASSES)["params"]


# ---- precision and memory ----


@pytest.mark.parametrize("network", [0, 1])
def test_bfloat16_is_near_float32(network):
    module, inputs = networks(CLASSES)[network]
    rough, _ = networks(CLASSES, dtype=jnp.bfloat16)[network]
    variables = scattered(module, *inputs)
    init = jax.eval_shape(functools.partial(rough.init, train=True), KEY, *inputs)
    assert {x.dtype for x in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    exact, near = apply(module, variables, *inputs), apply(rough, variables, *inputs)
    assert near.dtype == np.float32
    assert 0 < np.abs(near - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize(("network", "order"), [(0, 1), (1, 2)])
def test_remat_changes_no_gradient(network, order):
    """Of the discriminator, not even that of a gradient's length: blocks are made again twice."""
    module, inputs = networks(0)[network]
    variables = scattered(module, *inputs)

    def gradients(module):
        def value(variables, x):
            return jnp.sum(jnp.sin(module.apply(variables, x, train=True)))

        def length(variables, x):
            return jnp.sum(jax.grad(value, 1)(variables, x) ** 2)

        return jax.jit(jax.grad((value, length)[order - 1]))(variables, *inputs)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, gradients(module), gradients(module.clone(remat=True)))


# ---- mistakes ----


def init(module, *args):
    return jax.eval_shape(functools.partial(module.init, train=True), KEY, *args)


@pytest.mark.parametrize("size", [4, 24, 48, 512])
def test_size_it_cannot_make(size):
    with pytest.raises(UserError, match=f"size {size}: take 8, 16, 32, 64, 128 or 256"):
        init(Generator(size), jnp.ones((1, 64)))
    with pytest.raises(UserError, match=f"size {size}: take"):
        init(Discriminator(size), jnp.ones((1, size, size, 3)))


@pytest.mark.parametrize(
    ("size", "width", "group", "multiple"),
    [(32, 100, 16, 8), (64, 24, 16, 16), (256, 32, 16, 64), (32, 8, 3, 3), (8, 0, 1, 1)],
)
def test_width_that_groups_do_not_divide(size, width, group, multiple):
    with pytest.raises(UserError, match=f"width {width}: take a multiple of {multiple}, or"):
        init(Generator(size, width=width, group_width=group), jnp.ones((1, 64)))
    fitting = Generator(size, width=multiple, group_width=group, blocks=1)
    assert init(fitting, jnp.ones((1, 64)))


def test_conditions_it_cannot_be_told():
    z, x, label = jnp.ones((2, 64)), jnp.ones((2, 8, 8, 3)), jnp.zeros(2, int)
    tiny = dict(image_size=8, width=8, num_classes=CLASSES)
    text = Text(jnp.ones((2, 3), int), jnp.ones((2, 3), bool))
    for network, first in ((Generator, z), (Discriminator, x)):
        with pytest.raises(UserError, match="reads labels, not texts"):
            init(network(**tiny), first, text)
        with pytest.raises(UserError, match="condition holds 'films'"):
            init(network(**tiny, condition="films"), first, label)
        with pytest.raises(ValueError, match="conditional on 3 classes: pass a label"):
            init(network(**tiny), first)
    with pytest.raises(UserError, match="r3gan's blocks is 0: take at least 1"):
        init(Generator(**tiny, blocks=0), z, label)
    with pytest.raises(UserError, match="take projection beside auxiliary"):
        init(Discriminator(**tiny, condition="concat,auxiliary"), x, label)
    with pytest.raises(UserError, match="add one of concat, projection"):
        init(Discriminator(**tiny, condition="auxiliary"), x, jnp.zeros(4, int))
