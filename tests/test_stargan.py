"""StarGAN's networks against PyTorch's, its step against the textbook's, its layouts, measures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from translation_helpers import (
    LR,
    RNG,
    bits,
    close,
    descend,
    l164,
    louder,
    masked,
    same,
    small_config,
    step,
    trained,
)

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import concat_label
from aigc_jax.layers.conv import Conv
from aigc_jax.methods import stargan as method
from aigc_jax.methods.stargan import StarGAN
from aigc_jax.models import stargan as networks

CLASSES, SIZE = 3, 8
SGD = optax.sgd(LR)


class Toy(nn.Module):
    """A generator that compiles at once."""

    @nn.compact
    def __call__(self, x, label, *, train=False):
        y = nn.leaky_relu(Conv(4)(concat_label(x, label, CLASSES)), 0.2)
        return jnp.tanh(x + Conv(x.shape[-1])(y))


def make(axis_name=None, **fields):
    networks_ = dict(generator=Toy(), discriminator=networks.Discriminator(CLASSES, SIZE, 4))
    weights = dict(gradient_penalty=3.0, class_weight=0.7, cycle_weight=5.0)
    rates = dict(g_tx=SGD, d_tx=SGD, ema_half_life=16.0, ema_ramp_up=0.0)
    fields = networks_ | weights | rates | dict(d_steps=2) | fields
    return StarGAN(num_classes=CLASSES, axis_name=axis_name, **fields)


PLAIN = make()


def make_batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (n, SIZE, SIZE, 3)).astype(np.float32),
        "label": rng.integers(0, CLASSES, n).astype(np.int32),
    }


@functools.cache
def first_state(gan=PLAIN):
    """With weights of a size at which every term counts."""
    state = jax.jit(functools.partial(method.init_state, gan))(RNG, make_batch(1))
    g = louder(state.g, 1.0)
    return state.replace(g=g, d=louder(state.d, 1.5), ema=g)


# ---- the networks ----


def test_published_sizes():
    image, label = (jax.ShapeDtypeStruct(s, t) for s, t in (((1, 128, 128, 3), float), ((1,), int)))
    g = jax.eval_shape(networks.Generator(5).init, RNG, image, label)
    d = jax.eval_shape(networks.Discriminator(5).init, RNG, image)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (g, d)]
    assert sizes == [8_430_528, 44_762_048]


def twins(width, blocks, size):
    """Choi et al. 2018, tables 4 and 5: (generator, layers of the discriminator, its two heads)."""
    from torch import nn

    conv = functools.partial(nn.Conv2d, bias=False)

    class Block(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    def norm(c):
        return nn.InstanceNorm2d(c, affine=True)

    def block(c):
        return Block(conv(c, c, 3, 1, 1), norm(c), nn.ReLU(), conv(c, c, 3, 1, 1), norm(c))

    generator = [conv(3 + CLASSES, width, 7, 1, 3), norm(width), nn.ReLU()]
    for c in (width, 2 * width):
        generator += [conv(c, 2 * c, 4, 2, 1), norm(2 * c), nn.ReLU()]
    generator += [block(4 * width) for _ in range(blocks)]
    for c in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(c, c // 2, 4, 2, 1, bias=False)
        generator += [up, norm(c // 2), nn.ReLU()]
    generator += [conv(width, 3, 7, 1, 3), nn.Tanh()]
    layers, c = [], 3
    while size > 2:
        after = 2 * c if layers else width
        layers += [nn.Conv2d(c, after, 4, 2, 1), nn.LeakyReLU(0.01)]
        c, size = after, size // 2
    heads = conv(c, 1, 3, 1, 1), conv(c, CLASSES, size)
    return nn.Sequential(*generator), nn.Sequential(*layers), heads


def load(params, *modules):
    """Copies parameters into the twin: each kind of layer by its order."""
    import torch

    numbers = {"Conv2d": "Conv", "ConvTranspose2d": "ConvTranspose"}
    numbers |= {"InstanceNorm2d": "InstanceNorm"}
    used, left = dict.fromkeys(numbers, 0), set(params)
    with torch.no_grad():
        for layer in [layer for module in modules for layer in module.modules()]:
            kind = type(layer).__name__
            if kind in numbers:
                name = f"{numbers[kind]}_{used[kind]}"
                used[kind] += 1
                left.remove(name)
                for key, value in params[name].items():
                    value = np.array(value.transpose(3, 2, 0, 1) if key == "kernel" else value)
                    twin = layer.bias if key == "bias" else layer.weight
                    assert twin.shape == value.shape
                    twin.copy_(torch.tensor(value))
                assert (layer.bias is not None) == ("bias" in params[name])
    assert not left


def test_networks_equal_pytorchs():
    torch = pytest.importorskip("torch")
    generator, layers, (patch_head, class_head) = twins(width=4, blocks=2, size=16)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    label = jnp.array([2, 0])
    x = torch.tensor(images).permute(0, 3, 1, 2)
    planes = torch.nn.functional.one_hot(torch.tensor([2, 0]), CLASSES).float()
    planes = planes[:, :, None, None].expand(-1, -1, 16, 16)

    ours = networks.Generator(CLASSES, width=4, blocks=2)
    variables = louder(jax.jit(ours.init)(RNG, images, label), 1.0)
    load(variables["params"], generator)
    expected = generator(torch.cat([x, planes], 1)).detach().permute(0, 2, 3, 1)
    made = jax.jit(ours.apply)(variables, images, label)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert not np.allclose(made, jax.jit(ours.apply)(variables, images, label[::-1]), atol=1e-2)

    ours = networks.Discriminator(CLASSES, 16, 4)
    variables = louder(jax.jit(ours.init)(RNG, images), 1.0)
    load(variables["params"], layers, patch_head, class_head)
    patches, classes = jax.jit(ours.apply)(variables, images)
    assert patches.shape == (2, 2, 2) and classes.shape == (2, CLASSES)
    found = layers(x)
    np.testing.assert_allclose(patches, patch_head(found).detach()[:, 0], atol=1e-4)
    np.testing.assert_allclose(classes, class_head(found).detach()[:, :, 0, 0], atol=1e-4)


@pytest.mark.parametrize(("size", "side"), [(4, 2), (32, 2), (48, 3), (128, 2), (256, 4)])
def test_discriminators_of_other_sizes(size, side):
    x = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    module = networks.Discriminator(CLASSES, size, 1)
    (patches, classes), _ = jax.eval_shape(module.init_with_output, RNG, x)
    assert patches.shape == (1, side, side) and classes.shape == (1, CLASSES)


@pytest.mark.parametrize("shape", [(80, 80), (2, 2), (32, 64)])
def test_sizes_that_a_discriminator_does_not_take(shape):
    module = networks.Discriminator(CLASSES, shape[0], 1)
    with pytest.raises(UserError, match=f"not {shape[0]}x{shape[1]} with image_size"):
        jax.eval_shape(module.init, RNG, jax.ShapeDtypeStruct((1, *shape, 1), jnp.float32))


# ---- the step ----


def by_hand(gan, state, batch):
    """`d_steps` updates of D, then one of G through D as it now is; a pass for each term."""
    g, d, rng = state.g, state.d, jax.random.fold_in(RNG, state.step)

    def drawn(k, n):
        """The examples' new classes and places on the lines."""
        key = jax.random.fold_in(rng, k)
        keys = [jax.random.fold_in(key, i) for i in range(n)]
        target = [jax.random.randint(jax.random.fold_in(x, 2), (), 0, CLASSES) for x in keys]
        t = [jax.random.uniform(jax.random.fold_in(x, 1)) for x in keys]
        return jnp.stack(target), jnp.stack(t)[:, None, None, None]

    def cross_entropy(logits, label):
        chosen = (jax.nn.log_softmax(logits) * jax.nn.one_hot(label, CLASSES)).sum(-1)
        return -chosen.mean()

    for k in range(gan.d_steps):
        image, label = (batch[name][k :: gan.d_steps] for name in ("image", "label"))
        target, t = drawn(k, len(image))
        fake = gan.generator.apply(g, image, target)

        def d_loss(d, image=image, label=label, t=t, fake=fake):
            real_patches, classes = gan.discriminator.apply(d, image)
            fake_patches, _ = gan.discriminator.apply(d, fake)

            def slope(x):
                # Of the patches' sum, as published, not of their mean.
                critic = lambda x: gan.discriminator.apply(d, x[None])[0].sum()  # noqa: E731
                return jnp.sqrt((jax.grad(critic)(x) ** 2).sum())

            norms = jax.vmap(slope)(t * fake + (1 - t) * image)
            losses = {
                "d_loss": fake_patches.mean() - real_patches.mean(),
                "d_class_loss": cross_entropy(classes, label),
                "gradient_penalty": ((norms - 1) ** 2).mean(),
            }
            weights = (1.0, gan.class_weight, gan.gradient_penalty)
            return sum(w * x for w, x in zip(weights, losses.values(), strict=True)), losses

        grads, d_losses = jax.grad(d_loss, has_aux=True)(d)
        d = descend(d, grads)

    def g_loss(g):
        fake = gan.generator.apply(g, image, target)
        patches, classes = gan.discriminator.apply(d, fake)
        losses = {
            "g_loss": -patches.mean(),
            "class_loss": cross_entropy(classes, target),
            "cycle_loss": jnp.abs(gan.generator.apply(g, fake, label) - image).mean(),
        }
        weights = (1.0, gan.class_weight, gan.cycle_weight)
        return sum(w * x for w, x in zip(weights, losses.values(), strict=True)), losses

    grads, g_losses = jax.grad(g_loss, has_aux=True)(g)
    return descend(g, grads), d, d_losses | g_losses


def test_step_is_the_textbooks():
    state, batch = first_state(), make_batch()
    new, metrics = step(method, PLAIN, state, batch)
    g, d, losses = jax.jit(functools.partial(by_hand, PLAIN))(state, batch)
    close((new.g, new.d), (g, d), 1e-5, 1e-4)
    close({name: metrics[name] for name in losses}, losses, 1e-5, 1e-4)
    assert losses["gradient_penalty"] > 1e-3 and not same(new.g, state.g)
    for name in ("d_class_accuracy", "class_accuracy"):
        assert 0 <= metrics[name] <= 1


def test_each_update_leaves_the_other_alone():
    state, batch = first_state(), make_batch()
    for still in "gd":
        new, _ = step(method, make(**{f"{still}_tx": optax.set_to_zero()}), state, batch)
        assert same(state.g, new.g) == (still == "g") and same(state.d, new.d) == (still == "d")


@functools.cache
def two_steps():
    state = first_state()
    for t in range(2):
        state, metrics = step(method, PLAIN, state, make_batch(seed=t))
    return state, metrics


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_every_layout_has_the_same_state(mode):
    batches = [make_batch(seed=t) for t in range(2)]
    state, metrics = trained(method, make, mode, 8, batches, first_state())
    close(state, two_steps()[0])
    close(metrics, two_steps()[1], 1e-5, 1e-4)


def test_two_runs_are_the_same():
    assert bits(two_steps.__wrapped__()) == bits(two_steps())


def test_averages_and_colours():
    state, batch = first_state(), make_batch()
    new, _ = step(method, PLAIN, state, batch)  # 16 images: one half-life
    close(new.ema, jax.tree.map(lambda old, x: (old + x) / 2, state.ema, new.g))
    assert method.weights(new) is new.ema and method.weights(new.replace(ema=None)) is new.g
    np.testing.assert_allclose(new.colour, batch["image"].mean((0, 1, 2)), atol=1e-6)


def test_classes_are_drawn_alike():
    keys = jax.random.split(RNG, 3000)
    share = np.bincount(method._drawn(keys, CLASSES)) / 3000
    np.testing.assert_allclose(share, 1 / 3, atol=0.04)


# ---- what it is used for ----


@functools.partial(jax.jit, static_argnums=0)
def translated(gan, state, images, label):
    return method.translate(gan, state, images, label)


def test_translates_other_sizes():
    """With the published generator; by the averaged weights."""
    gan = make(generator=networks.Generator(CLASSES, width=2, blocks=1))
    state = jax.jit(functools.partial(method.init_state, gan))(RNG, make_batch(1))
    state = state.replace(ema=louder(state.g))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 12, 20, 3)).astype(np.float32)
    label = jnp.array([1, 2])
    assert method.multiple(gan) == 4
    made = translated(gan, state, images, label)
    assert made.shape == images.shape and made.dtype == jnp.float32
    expected = jax.jit(gan.generator.apply)(state.ema, images, label)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def source_of(i, label):
    """The nearest after example i, around the batch, that has another label; else itself."""
    around = [(i + k) % len(label) for k in range(1, len(label))]
    return next((j for j in around if label[j] != label[i]), i)


@pytest.mark.parametrize("label", [[0, 0, 1, 2, 2], [1, 1, 1, 1, 0], [2, 2, 2, 2, 2]])
def test_samples_are_of_images_of_another_label(label):
    (state, _), batch = two_steps(), make_batch(5)
    batch["label"] = np.array(label, np.int32)
    base = method.baselines(PLAIN, state, batch)
    others = batch["image"][[source_of(i, label) for i in range(5)]]
    np.testing.assert_array_equal(base["copied"], others)
    constant = np.broadcast_to(np.asarray(state.colour), others.shape)
    np.testing.assert_array_equal(base["constant"], constant)
    assert list(base) == ["constant", "copied"]
    made = method.sample(PLAIN, state, RNG, batch)
    np.testing.assert_allclose(made, translated(PLAIN, state, others, batch["label"]), atol=1e-5)


def test_eval_step_is_numpys():
    (state, _), batch = two_steps(), make_batch(4)
    batch["valid"] = np.array([1, 1, 1, 0], np.float32)
    found = method.eval_step(PLAIN, state, batch, RNG)
    there = translated(PLAIN, state, batch["image"], (batch["label"] + 1) % CLASSES)
    back = translated(PLAIN, state, there, batch["label"])
    expected = masked(l164(back, batch["image"]), batch["valid"])
    assert list(found) == ["cycle_l1"]
    np.testing.assert_allclose(found["cycle_l1"], expected, rtol=1e-4)


def test_preview_has_a_column_a_class():
    (state, _), batch = two_steps(), make_batch(9)
    grid = jax.jit(functools.partial(method.preview, PLAIN))(state, RNG, batch)["classes"]
    assert grid.shape == (8, 1 + CLASSES, SIZE, SIZE, 3)
    images = batch["image"][:8]
    np.testing.assert_array_equal(grid[:, 0], images)
    made = translated(PLAIN, state, images, jnp.full(8, 2, jnp.int32))
    np.testing.assert_allclose(grid[:, 3], made, atol=1e-5)


# ---- from a config ----


def test_from_config_is_as_published():
    gan = method.from_config(small_config(method, image_size=128, num_classes=5), "data")
    assert gan == StarGAN(
        generator=networks.Generator(5, 3, 64, 6),
        discriminator=networks.Discriminator(5, 128, 64),
        g_tx=gan.g_tx,
        d_tx=gan.d_tx,
        num_classes=5,
        ema_half_life=10_000.0,
        axis_name="data",
    )
    assert gan.d_steps == 5 and gan.gradient_penalty == gan.cycle_weight == 10
    assert gan.class_weight == 1


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"num_classes": 0}, r'needs labels, of 2 classes or more \(config.task = "label"\)'),
        ({"generator__name": "stargam"}, "Did you mean 'stargan'"),
        ({"discriminator__widht": 3}, "no field 'widht'. Did you mean 'width'"),
        ({"image_size": 20}, "takes square images .* not 20x20 with image_size 20"),
    ],
)
def test_mistakes_are_told(fields, line):
    with pytest.raises(UserError, match=line) as error:
        gan = method.from_config(small_config(method, **dict(num_classes=CLASSES) | fields))
        batch = {"image": np.zeros((1, 20, 20, 3), np.float32), "label": np.zeros(1, np.int32)}
        jax.eval_shape(functools.partial(method.init_state, gan), RNG, batch)
    assert "\n" not in str(error.value)
