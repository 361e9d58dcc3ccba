"""The residual GANs equal their twins in PyTorch, with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resnet_helpers as shared
from resnet_helpers import CLASSES, KEY, LABEL, STATE, apply, given, normal, scattered, shapes

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text
from aigc_jax.models.resnet_gan import Discriminator, Generator
from aigc_jax.parallel import interleave

# Channels of the generator from 4x4 on, of the discriminator's blocks, and how many of them halve.
PUBLISHED = {
    16: ((4, 4, 4), (2, 2, 2, 2), 2),
    32: ((4, 4, 4, 4), (2, 2, 2, 2), 2),
    64: ((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
    128: ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
    256: ((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), 6),
}
BOTH = pytest.mark.parametrize("network", [0, 1])


def networks(num_classes=CLASSES, told=("batch_norm,concat", "projection"), **fields):
    """(generator, its inputs), (discriminator, its inputs), with attention: as small as can be."""
    small = dict(image_size=16, width=2, attention=8, spectral=True)
    fields = small | dict(num_classes=num_classes) | fields
    g = Generator(latent_dim=6, condition=told[0], **fields)
    d = Discriminator(condition=told[1], **fields)
    label = [LABEL] if num_classes else []
    return (g, [normal(4, 6), *label]), (d, [normal(4, 16, 16, 3, seed=1), *label])


# ---- counts and shapes ----


def test_published_counts():
    z, label, image = jnp.zeros((1, 128)), jnp.zeros(1, int), jnp.zeros((1, 32, 32, 3))
    sagan = dict(attention=16, spectral=True)
    assert shared.count(Generator(), z) == 4_276_739
    assert shared.count(Generator(num_classes=10), z, label) == 4_304_387
    assert shared.count(Generator(num_classes=10, **sagan), z, label) == 4_386_308
    assert shared.count(Discriminator(), image) == 1_053_825
    assert shared.count(Discriminator(num_classes=10), image, label) == 1_055_105


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes(size):
    fields = dict(image_size=size, width=2, num_classes=CLASSES, attention=8)
    channels = 1 if size == 16 else 3
    g, d = Generator(channels=channels, **fields), Discriminator(spectral=False, **fields)
    label, found = jnp.array([0, CLASSES]), {}

    def run(key):
        images, found["g"] = g.init_with_output(key, jnp.ones((2, 128)), label, train=False)
        logits, found["d"] = d.init_with_output(key, images, label, train=False)
        return images, logits

    images, logits = jax.eval_shape(run, KEY)
    assert images.shape == (2, size, size, channels) and images.dtype == jnp.float32
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    of_g, of_d, _ = PUBLISHED[size]
    features = lambda name, i: found[name]["params"][f"block{i}"]["Conv_0"]["kernel"].shape[-1]  # noqa: E731
    assert tuple(features("g", i) for i in range(len(of_g) - 1)) == tuple(2 * w for w in of_g[1:])
    assert tuple(features("d", i) for i in range(len(of_d))) == tuple(2 * w for w in of_d)


# ---- the PyTorch twin ----


def test_the_twin_has_the_published_counts():
    twin = pytest.importorskip("twin_sngan")
    count = lambda module: sum(x.numel() for x in module.parameters())  # noqa: E731
    assert count(twin.Generator(num_classes=10, attention=16, spectral=True)) == 4_386_308
    assert count(twin.Discriminator(num_classes=10)) == 1_055_105
    assert count(twin.BigGenerator(num_classes=10)) == 9_416_196
    big = dict(widths=(192,) * 4, num_classes=10, attention=16)
    assert count(twin.Discriminator(**big)) == 2_415_170


@pytest.mark.parametrize(
    ("size", "told", "fields"),
    [
        (16, None, {}),
        (32, "batch_norm", {}),
        (16, "batch_norm,concat", dict(attention=8, spectral=True)),
    ],
)
def test_generator_equals_pytorch(size, told, fields):
    twin, width = pytest.importorskip("twin_sngan"), 2
    classes, label = (CLASSES, LABEL) if told else (0, None)
    g = Generator(
        size, latent_dim=6, width=width, condition=told or "", num_classes=classes, **fields
    )
    widths = [width * times for times in PUBLISHED[size][0]]
    module = twin.Generator(
        widths, latent_dim=6, num_classes=classes, condition=told or "", **fields
    )
    z = normal(4, 6)
    copied = functools.partial(twin.copy_generator, module=module)
    inputs = [z, *given(label)], copied, twin, [shared.to_torch(z), *shared.one_hot(label)]
    shared.equals_the_twin(g, *inputs)


@pytest.mark.parametrize(
    ("size", "told", "fields"),
    [
        (16, None, dict(pool="mean", spectral=False)),
        (32, "concat,projection", dict(attention=16)),
        (64, "projection,auxiliary", dict(spectral=False)),
    ],
)
def test_discriminator_equals_pytorch(size, told, fields):
    twin, width = pytest.importorskip("twin_sngan"), 2
    classes, label = (CLASSES, LABEL) if told else (0, None)
    told = dict(condition=told or "", num_classes=classes)
    _, blocks, halvings = PUBLISHED[size]
    module = twin.Discriminator([width * b for b in blocks], halvings, size, **told, **fields)
    x = normal(4, size, size, 3)
    copied = functools.partial(twin.copy_discriminator, module=module)
    inputs = [x, *given(label)], copied, twin, [shared.to_torch(x), *shared.one_hot(label)]
    d = Discriminator(size, width, **told, **fields)
    shared.equals_the_twin(d, *inputs, classes="auxiliary" in told["condition"])


def test_gradients_through_both_are_pytorchs():
    """Of -D(G(z)), by the parameters of both and by the latent, in SAGAN's networks."""
    twin = pytest.importorskip("twin_sngan")
    (g, (z, label)), (d, (x, _)) = networks(told=("batch_norm", "projection"))
    gv, dv = scattered(g, z, label), scattered(d, x, label)

    @jax.jit
    def gradients(g_params, d_params, z):
        def loss(g_params, d_params, z):
            y, _ = g.apply(gv | {"params": g_params}, z, label, train=True, mutable=STATE)
            return -d.apply(dv | {"params": d_params}, y, label, train=True).mean()

        return jax.grad(loss, (0, 1, 2))(g_params, d_params, z)

    ours = jax.device_get(gradients(gv["params"], dv["params"], z))
    fields = dict(num_classes=CLASSES, attention=8, spectral=True)
    torch_g = twin.Generator((8,) * 3, latent_dim=6, **fields)
    torch_d = twin.Discriminator((4,) * 4, image_size=16, **fields)
    twin.copy_generator(gv, torch_g), twin.copy_discriminator(dv, torch_d)
    tz, (hot,) = shared.to_torch(z).requires_grad_(), shared.one_hot(label)
    (-torch_d(torch_g(tz, hot), hot).mean()).backward()
    near = lambda a, b: (a - b).norm() < 1e-3 * b.norm() + 1e-5  # noqa: E731
    assert near(shared.to_torch(ours[2]), tz.grad)
    for module, tree in zip((torch_g, torch_d), ours, strict=False):
        found = twin.named(module, tree)
        for name, x in module.named_parameters():
            assert near(found[name], x.grad), name


# ---- conditions ----


@pytest.mark.parametrize("condition", ["projection", "concat"])
def test_groups_and_several_labels_are_passes_of_their_own(condition):
    """Real and fake by turns, with two labels each: four logits a pair."""
    _, (d, (real, label)) = networks(told=("", condition))
    fake, wrong = normal(*real.shape, seed=2), (label + 1) % CLASSES
    variables = scattered(d, real, label)
    both, _ = apply(d, variables, interleave(real, fake), interleave(label, wrong), groups=2)
    both = both.reshape(4, 2, 2)
    for i, images in enumerate((real, fake)):
        for j, told in enumerate((label, wrong)):
            alone, _ = apply(d, variables, images, told)
            np.testing.assert_allclose(both[:, i, j], alone, atol=1e-4, rtol=1e-5)


def test_auxiliary_tells_the_classes_of_images_whatever_the_label():
    _, (d, (x, label)) = networks(told=("", "projection,auxiliary"), attention=0)
    variables = scattered(d, x, label)
    with_auxiliary = functools.partial(apply, d, variables, x, changes=("auxiliary",))
    logits, sown = with_auxiliary(label)
    others, again = with_auxiliary((label + 1) % CLASSES)
    (classes,) = sown["auxiliary"]["logits"]
    assert classes.shape == (4, CLASSES) and classes.dtype == np.float32 and classes.std() > 0.01
    np.testing.assert_array_equal(classes, again["auxiliary"]["logits"][0])
    assert np.abs(logits - others).max() > 1e-3


def test_label_that_says_nothing():
    """Scales are then 1, biases 0, a projection 0, and nothing is concatenated."""
    nothing = np.full(4, CLASSES, np.int32)
    (g, (z, label)), (d, (x, _)) = networks(spectral=False)
    variables = scattered(g, z, label)
    found, _ = apply(g, variables, z, nothing)
    params = jax.tree_util.tree_map_with_path(_deaf, variables["params"])
    np.testing.assert_allclose(
        found, apply(g, variables | {"params": params}, z, label)[0], atol=1e-6
    )
    variables = scattered(d, x, label)
    plain = {k: v for k, v in variables["params"].items() if k != "projection"}
    expected, _ = apply(d.clone(num_classes=0), variables | {"params": plain}, x)
    np.testing.assert_allclose(apply(d, variables, x, nothing)[0], expected, atol=1e-6)


def _deaf(path, kernel):
    """The kernel of a generator with zeros where it reads a label."""
    names = [key.key for key in path]
    if names[-2] in ("gain", "bias"):
        return np.zeros_like(kernel)
    if names == ["Dense_0", "kernel"]:
        return np.concatenate([kernel[:-CLASSES], 0 * kernel[-CLASSES:]])
    return kernel


def test_label_changes_both():
    for network, (first, label) in networks():
        variables = scattered(network, first, label)
        others = [apply(network, variables, first, (label + i) % CLASSES)[0] for i in range(2)]
        assert np.abs(others[0] - others[1]).max() > 1e-3


@BOTH
def test_no_way_to_be_told_ignores_the_label(network):
    module, (x, label) = networks(told=("", ""))[network]
    assert shapes(module, x, label) == shapes(module.clone(num_classes=0), x)


# ---- first weights ----


def test_scales_of_zero_are_plain_batch_norm():
    """BN(x) (1 + 0) + 0, whatever the label: the unconditional image, of scales 1 and biases 0."""
    (g, (z, label)), _ = networks(told=("batch_norm", ""), spectral=False)
    variables = scattered(g, z, label)
    values = jax.tree_util.tree_map_with_path(_deaf, variables["params"])
    conditional, _ = apply(g, variables | {"params": values}, z, label)
    plain = g.clone(num_classes=0)
    ones = jax.tree.map(lambda x: np.ones(x.shape, "f"), shapes(plain, z)["params"])
    params = jax.tree_util.tree_map_with_path(functools.partial(_taken, values), ones)
    state = shared.parts(scattered(plain, z), "batch_stats")
    unconditional, _ = apply(plain, state | {"params": params}, z)
    np.testing.assert_allclose(conditional, unconditional, atol=5e-6)


def _taken(params, path, ones):
    """A leaf of an unconditional generator: the conditional one's, or of a plain batch norm."""
    names = [key.key for key in path]
    if names[0] != "BatchNorm_0" and names[-2].startswith("BatchNorm"):
        return ones * (names[-1] == "scale")
    return functools.reduce(lambda tree, name: tree[name], names, params)


# A block's convolution, its 1x1 convolution, a conditional scale.
PATHS = [
    f"params/block0/{layer}/kernel"
    for layer in ("UpsampleConv_0", "Dense_0", "ConditionalBatchNorm_0/gain")
]


def test_first_weights_of_glorot():
    (g, inputs), _ = networks(width=16, initialization="glorot", spectral=False)
    *kernels, scales = shared.first(g, PATHS, *inputs)
    for kernel, gain in zip(kernels, (2, 1), strict=True):
        fan = np.prod(kernel.shape[:-2]) * 64  # in and out alike
        assert abs(kernel.var() * fan / gain - 1) < 0.06
        assert np.abs(kernel).max() <= np.sqrt(3 * gain / fan)
    assert not scales.any()


def test_first_weights_of_orthogonal():
    (g, inputs), _ = networks(width=16, initialization="orthogonal", spectral=False)
    for kernel in shared.first(g, PATHS, *inputs):
        values = np.linalg.svd(kernel.reshape(-1, 64), compute_uv=False)
        np.testing.assert_allclose(values, 1, atol=1e-4)


@pytest.mark.parametrize("initialization", ["glorot", "orthogonal"])
def test_no_kernel_that_is_normalised_is_zero_at_first(initialization):
    """It would have no largest singular value to divide by."""
    (g, inputs), _ = networks(initialization=initialization)
    scales = "block0/ConditionalBatchNorm_0/gain"
    kernel, u = shared.first(g, [f"params/{scales}/kernel", f"spectral/{scales}/u"], *inputs)
    assert kernel.any() and abs(np.linalg.norm(u) - 1) < 1e-5


# ---- spectral normalisation ----


@pytest.mark.parametrize(("recipe", "of_g"), [("sngan", False), ("sagan", True)])
def test_layers_that_are_normalised(recipe, of_g):
    """All of SNGAN's discriminator and none of its generator, all of both in SAGAN."""
    fields = dict(attention=8, spectral=True) if recipe == "sagan" else {}
    g = Generator(16, latent_dim=6, width=2, num_classes=CLASSES, **fields)
    d = Discriminator(16, 2, "projection,auxiliary", num_classes=CLASSES, **fields)
    _, inputs = networks()[0]
    _, images = networks()[1]
    for reached, variables in ((of_g, shapes(g, *inputs)), (True, shapes(d, *images))):
        vectors = {path[:-1] for path in shared.leaves(variables.get("spectral", {}))}
        assert vectors == (shared.kernels(variables) if reached else set())


@BOTH
def test_largest_singular_values_are_one(network):
    """Equal to the network without it, whose kernels are divided by NumPy."""
    module, inputs = networks()[network]
    variables = shared.converged(module, scattered(module, *inputs), *inputs)
    found, _ = apply(module, variables, *inputs)
    expected, _ = apply(module.clone(spectral=False), shared.divided(variables), *inputs)
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)


def test_training_without_keeping_the_vectors():
    _, (d, (x, label)) = networks()
    variables = scattered(d, x, label)
    kept, changed = apply(d, variables, x, label)
    free, nothing = apply(d, variables, x, label, changes=())
    np.testing.assert_array_equal(kept, free)
    assert not nothing and np.abs(changed["spectral"]["logit"]["u"]).max() > 0


# ---- precision and memory ----


@BOTH
def test_bfloat16_is_near_float32(network):
    module, inputs = networks()[network]
    rough = module.clone(dtype=jnp.bfloat16)
    variables = scattered(module, *inputs)
    assert {x.dtype for x in jax.tree.leaves(shapes(rough, *inputs))} == {jnp.dtype("float32")}
    exact, near = (apply(m, variables, *inputs)[0] for m in (module, rough))
    assert near.dtype == np.float32
    assert 0 < np.abs(near - exact).max() < 0.06 * np.abs(exact).max()


def test_remat_changes_neither_outputs_nor_gradients():
    (g, inputs), (d, images) = networks(told=("batch_norm", "projection"), attention=0)
    plain = g.clone(spectral=False)
    shared.same_with_remat(plain, scattered(plain, *inputs), *inputs)
    variables, again = scattered(d, *images), d.clone(remat=True)
    assert shapes(d, *images) == shapes(again, *images)
    kept, made = (apply(m, variables, *images) for m in (d, again))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), kept, made)


def test_a_batch_over_devices_is_one_batch():
    g, z, label = Generator(16, latent_dim=6, width=1, num_classes=CLASSES), normal(16, 6), None
    label = np.arange(16, dtype=np.int32) % (CLASSES + 1)
    variables = scattered(g, z, label)
    expected, stats = apply(g, variables, z, label)
    over = g.clone(axis_name="data")
    run = functools.partial(over.apply, train=True, mutable=list(STATE))
    shards = z.reshape(8, 2, 6), label.reshape(8, 2)
    images, found = jax.pmap(run, "data", in_axes=(None, 0, 0))(variables, *shards)
    np.testing.assert_allclose(images.reshape(expected.shape), expected, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(lambda a, b: close(a[0], b), found["batch_stats"], stats["batch_stats"])


# ---- mistakes ----


@pytest.mark.parametrize("size", [4, 8, 24, 512])
def test_size_it_cannot_make(size):
    for network, x in (
        (Generator, jnp.ones((1, 128))),
        (Discriminator, jnp.ones((1, size, size, 3))),
    ):
        with pytest.raises(UserError, match=f"size {size}: take 16, 32, 64, 128, 256"):
            shapes(network(size), x)


@BOTH
def test_mistakes_of_both(network):
    module, (x, label) = networks()[network]
    name = ("generator", "discriminator")[network]
    with pytest.raises(UserError, match=r"initialization is 'glorott'.*glorot"):
        shapes(module.clone(initialization="glorott"), x, label)
    with pytest.raises(UserError, match=f"config.{name}.condition holds 'film'"):
        shapes(module.clone(condition="film"), x, label)
    with pytest.raises(UserError, match="reads labels, not texts"):
        shapes(module, x, Text(jnp.ones((4, 3), int), jnp.ones((4, 3), bool)))


def test_mistakes_of_the_discriminator():
    _, (d, (x, label)) = networks()
    with pytest.raises(UserError, match=r"discriminator\.pool is 'max'"):
        shapes(d.clone(pool="max"), x, label)
    wrong = interleave(label, label)
    assert shapes(d, x, wrong)
    with pytest.raises(UserError, match=r"mismatch is above 0.*one of concat, projection"):
        shapes(d.clone(condition="auxiliary"), x, wrong)
    with pytest.raises(UserError, match="take projection beside auxiliary"):
        shapes(d.clone(condition="concat,auxiliary"), x, label)
