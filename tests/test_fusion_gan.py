"""fusion_gan: its blocks are PyTorch's, and each way to tell it a condition, alone and together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text
from aigc_jax.models.fusion_blocks import Down, Up, doublings
from aigc_jax.models.fusion_gan import Discriminator, Generator
from aigc_jax.parallel import interleave

KEY = jax.random.key(0)
TOKENS = np.array([[2, 7, 8, 3, 0], [2, 9, 3, 0, 0]], np.int32)
CONDITIONS = {
    "labels": np.array([2, 0], np.int32),
    "tokens": Text(TOKENS, TOKENS != 0),
    "sentence": Text(
        np.zeros((2, 0, 6), np.float32),
        np.zeros((2, 0), bool),
        np.random.default_rng(3).normal(size=(2, 6)).astype(np.float32),
    ),
    "none": None,
}
DISCRIMINATES = ("concat", "projection", "attention", "auxiliary")
NETWORK = dict(image_size=8, width=4, num_classes=3, vocabulary=10, text_width=8, text_depth=1)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scattered(module, *args, scale=0.3, **kwargs):
    """Variables of the module, no parameter at its first value."""
    shapes = jax.eval_shape(functools.partial(module.init, KEY, *args, **kwargs))
    leaves, tree = jax.tree.flatten(shapes["params"])
    drawn = [scale * normal(*x.shape, seed=i) for i, x in enumerate(leaves)]
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(shapes))
    ones = {"batch_stats": jax.tree.map(np.ones_like, zeros.get("batch_stats", {}))}
    return {"params": jax.tree.unflatten(tree, drawn), **(ones if "batch_stats" in zeros else {})}


@functools.cache
def compiled(module):
    return jax.jit(functools.partial(module.apply, train=False))


def apply(module, variables, *args):
    return jax.device_get(compiled(module)(variables, *args))


def swapped(condition):
    return jax.tree.map(lambda x: x[::-1].copy(), condition)


# ---- blocks, against PyTorch ----


def torch_tools():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    tensor = lambda x: torch.tensor(np.asarray(x))  # noqa: E731
    images = lambda x: tensor(x).permute(0, 3, 1, 2)  # noqa: E731
    leaky = functools.partial(f.leaky_relu, negative_slope=0.2)

    def conv(params, x, **kwargs):
        kernel = tensor(params["kernel"]).permute(3, 2, 0, 1)
        return f.conv2d(x, kernel, tensor(params["bias"]) if "bias" in params else None, **kwargs)

    return f, tensor, images, leaky, conv


@pytest.mark.parametrize("double", [False, True])
def test_up_is_torchs(double):
    """Of 6 channels to 4, told by a vector of 5 numbers through a hidden layer of 3."""
    f, tensor, images, leaky, conv = torch_tools()
    block = Up(4, double, 3, lambda x: x, jnp.float32)
    x, vector = normal(2, 3, 4, 6), normal(2, 5, seed=1)
    params = scattered(block, x, vector)["params"]

    def film(params, y):
        first, last = ([tensor(p["kernel"]).T, tensor(p["bias"])] for p in params.values())
        affine = f.linear(f.relu(f.linear(tensor(vector), *first)), *last)
        scale, shift = affine[:, :, None, None].chunk(2, 1)
        return leaky(y * (1 + scale) + shift)

    twice = lambda y: f.interpolate(y, scale_factor=2) if double else y  # noqa: E731
    first = params["UpsampleConv_0"] if double else params["Conv_0"]
    second, skip = (params[f"Conv_{i}"] for i in ((0, 1) if double else (1, 2)))
    y = conv(first, twice(film(params["Film_0"], images(x))), padding=1)
    y = conv(second, film(params["Film_1"], y), padding=1)
    expected = (y + twice(conv(skip, images(x)))) * 2**-0.5
    found = jax.jit(block.apply)({"params": params}, x, vector)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-4)


def test_down_is_torchs():
    f, _, images, leaky, conv = torch_tools()
    x = normal(2, 4, 6, 3)
    params = scattered(Down(5, jnp.float32), x)["params"]
    y = leaky(conv(params["Conv_0"], images(x), stride=2, padding=1))
    y = leaky(conv(params["Conv_1"], y, padding=1))
    plain = conv(params["Conv_2"], f.avg_pool2d(images(x), 2))
    expected = (plain + y) / np.sqrt(2)
    found = jax.jit(Down(5, jnp.float32).apply)({"params": params}, x)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-4)


def test_strided_blocks_are_torchs():
    """Both networks of 16x16, of labels, by batch norm's first running statistics."""
    f, tensor, images, leaky, conv = torch_tools()
    dense = lambda p, x: x @ tensor(p["kernel"]) + tensor(p["bias"])  # noqa: E731
    normed = lambda x: x / np.sqrt(1 + 1e-5)  # noqa: E731
    label, network = CONDITIONS["labels"], NETWORK | dict(image_size=16, blocks="strided")

    def ready(net, x):
        variables = scattered(net, x, label, train=False)
        stats = jax.tree_util.tree_map_with_path(
            lambda path, x: np.ones_like(x) if path[-1].key == "var" else np.zeros_like(x),
            variables["batch_stats"],
        )
        found = apply(net, variables | {"batch_stats": stats}, x, label)
        return found, variables["params"]

    def vector(params):
        return tensor(params["condition_encoder"]["label"]["embedding"][label])

    z, pictures = normal(2, 6), normal(2, 16, 16, 3)
    found, params = ready(Generator(**network, latent_dim=6, norm="batch"), z)
    params = params["synthesis"]
    both = tensor(np.concatenate([z, vector(params)], 1))
    x = dense(params["Dense_0"], both).reshape(2, 4, 4, -1).permute(0, 3, 1, 2)
    for i in range(2):
        scale, shift = dense(params[f"Film_{i}"]["Dense_0"], both)[:, :, None, None].chunk(2, 1)
        x, up = f.relu(normed(x) * (1 + scale) + shift), params[f"ConvTranspose_{i}"]
        kernel = tensor(up["kernel"]).permute(3, 2, 0, 1)
        x = f.conv_transpose2d(x, kernel, tensor(up["bias"]), 2, 1)
    np.testing.assert_allclose(found, x.tanh().permute(0, 2, 3, 1).numpy(), atol=1e-4)

    found, params = ready(Discriminator(**network), pictures)
    x = leaky(conv(params["Conv_0"], images(pictures), stride=2, padding=1))
    x = normed(conv(params["Conv_1"], x, stride=2, padding=1))
    norm = {name: tensor(y)[:, None, None] for name, y in params["BatchNorm_0"].items()}
    x = leaky(x * norm["scale"] + norm["bias"])
    planes = vector(params)[:, :, None, None].expand(-1, -1, 4, 4).numpy()
    x = tensor(np.concatenate([x, planes], 1))
    logits = conv(params["logit"], leaky(conv(params["join"], x, padding=1)))
    np.testing.assert_allclose(found, logits.flatten(), atol=1e-4, rtol=1e-4)


# ---- the generator ----


@functools.cache
def generated(kind, condition, told="right", patch=1):
    """Images of two latents, by weights that are not the first ones."""
    generator = Generator(
        **NETWORK | dict(image_size=8 * patch, latent_dim=6, patch=patch, condition=condition)
    )
    z, right = normal(2, 6), CONDITIONS[kind]
    variables = scattered(generator, z, right, train=False)
    return apply(generator, variables, z, swapped(right) if told == "wrong" else right)


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        *[("tokens", way) for way in ("concat", "film", "attention", "concat, film,attention")],
        ("labels", "concat,film,attention"),
        ("sentence", "concat,film,attention"),
    ],
)
def test_each_way_to_tell_the_generator(kind, condition):
    images = generated(kind, condition)
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.float32
    assert np.abs(images).max() <= 1
    assert np.abs(images - generated(kind, condition, "wrong")).max() > 1e-3


def test_a_generator_that_is_not_told():
    np.testing.assert_array_equal(generated("labels", ""), generated("labels", "", "wrong"))
    assert generated("none", "concat,film,attention").shape == (2, 8, 8, 3)


def test_patches_halve_what_is_computed():
    """Twice the size by the same blocks; only the last layer grows."""
    assert generated("labels", "concat", patch=2).shape == (2, 16, 16, 3)
    count = {}
    for patch in (1, 2):
        generator = Generator(**NETWORK | dict(image_size=8 * patch, patch=patch))
        shapes = jax.eval_shape(functools.partial(generator.init, KEY, train=False), normal(1, 100))
        count[patch] = sum(x.size for x in jax.tree.leaves(shapes))
    assert count[2] - count[1] == 3 * (9 * 3 * NETWORK["width"] + 3)


def test_pixels_of_a_patch_are_alike_at_first():
    generator = Generator(**NETWORK | dict(image_size=16, patch=2))
    z = normal(2, 100)
    images = jax.jit(functools.partial(generator.init_with_output, KEY, train=False))(z)[0]
    blocks = np.asarray(images).reshape(2, 8, 2, 8, 2, 3)
    np.testing.assert_allclose(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    assert np.ptp(blocks[:, :, 0, :, 0]) > 0


def test_batch_norm_takes_the_batchs_statistics():
    generator = Generator(**NETWORK | dict(latent_dim=6, norm="batch"))
    z, label = 3 * normal(2, 6), CONDITIONS["labels"]
    variables = scattered(generator, z, label, train=False)
    run = functools.partial(generator.apply, train=True, mutable=["batch_stats"])
    images, changed = jax.jit(run)(variables, z, label)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max() > 0, changed, {"batch_stats": variables["batch_stats"]}
    )
    assert all(jax.tree.leaves(moved))
    assert np.abs(images - apply(generator, variables, z, label)).max() > 1e-3


def test_guidance_of_minus_one_is_the_empty_condition():
    """Label 3 of 3 says nothing."""
    generator = Generator(**NETWORK | dict(latent_dim=6))
    z, label = normal(2, 6), CONDITIONS["labels"]
    variables = scattered(generator, z, label, train=False)
    without = apply(generator.clone(guidance=-1.0), variables, z, label)
    empty = apply(generator, variables, z, np.full_like(label, 3))
    np.testing.assert_allclose(without, empty, atol=1e-5)
    as_is = apply(generator, variables, z, label)
    assert np.abs(as_is - empty).max() > 1e-3
    beyond = apply(generator.clone(guidance=1.0), variables, z, label)
    assert np.abs(beyond - as_is).max() > 1e-3


def test_width_of_each_block():
    """256x256, width 32: the published plan of channels (Tao et al. 2022), 8 widths at most."""
    generator = Generator(image_size=256)
    z = jax.ShapeDtypeStruct((1, 100), jnp.float32)
    params = jax.eval_shape(functools.partial(generator.init, KEY, train=False), z)["params"]
    blocks = params["synthesis"]
    last = [
        next(x["bias"].size for name, x in blocks[f"Up_{i}"].items() if "Conv" in name)
        for i in range(7)
    ]
    assert last == [256, 256, 256, 256, 128, 64, 32] and "Up_7" not in blocks


# ---- the discriminator ----


def discriminator(condition="concat", **fields):
    return Discriminator(**NETWORK | fields, condition=condition)


@pytest.mark.parametrize(
    ("kind", "condition"),
    [
        *[("labels", way) for way in ("concat", "projection", "attention")],
        *[(kind, ",".join(DISCRIMINATES)) for kind in ("labels", "tokens", "sentence")],
    ],
)
def test_groups_share_their_conditions(kind, condition):
    """Real and fake, each with a right and a wrong condition, in one pass or in four."""
    module, right = discriminator(condition), CONDITIONS[kind]
    real, fake, wrong = normal(2, 8, 8, 3), normal(2, 8, 8, 3, seed=1), swapped(right)
    variables = scattered(module, real, right, train=False)

    def passes(variables, real, fake, right, wrong):
        one = functools.partial(module.apply, variables, train=False)
        both = jax.tree.map(interleave, right, wrong)
        together = one(interleave(real, fake), both, groups=2).reshape(2, 2, 2)
        alone = [[one(x, condition) for condition in (right, wrong)] for x in (real, fake)]
        return together, jnp.asarray(alone).transpose(2, 0, 1)

    together, alone = jax.jit(passes)(variables, real, fake, right, wrong)
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=1e-4)
    assert np.abs(alone[:, :, 0] - alone[:, :, 1]).min() > 1e-4  # it hears the condition
    assert np.abs(alone[:, 0] - alone[:, 1]).min() > 1e-4  # and sees the image


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("kind", ["labels", "none"])
def test_a_logit_an_image(kind, patch):
    module, x = discriminator(image_size=8 * patch, patch=patch), normal(2, 8 * patch, 8 * patch, 3)
    condition = CONDITIONS[kind]
    found = apply(module, scattered(module, x, condition, train=False), x, condition)
    assert found.shape == (2,) and found.dtype == np.float32


def test_a_discriminator_that_is_not_told():
    module, x, label = discriminator("auxiliary"), normal(2, 8, 8, 3), CONDITIONS["labels"]
    variables = scattered(module, x, label, train=False)
    np.testing.assert_array_equal(
        apply(module, variables, x, label), apply(module, variables, x, swapped(label))
    )


def test_auxiliary_classes_are_told_of_the_image_alone():
    module, x, label = discriminator("concat,auxiliary"), normal(4, 8, 8, 3), CONDITIONS["labels"]
    variables = scattered(module, x, np.tile(label, 2), train=False)
    run = functools.partial(module.apply, train=False, groups=2, mutable=["auxiliary"])
    _, sown = jax.jit(run)(variables, x, label)
    (logits,) = sown["auxiliary"]["logits"]
    assert logits.shape == (4, 3) and logits.dtype == jnp.float32
    _, other = jax.jit(run)(variables, x, swapped(label))
    np.testing.assert_array_equal(logits, other["auxiliary"]["logits"][0])


def test_auxiliary_texts_are_unit_vectors():
    """Of every image, and of each of its two texts."""
    text = jax.tree.map(lambda x: np.concatenate([x, x]), CONDITIONS["tokens"])
    module, x = discriminator("concat,auxiliary"), normal(4, 8, 8, 3)
    variables = scattered(module, x, text, train=False)
    run = functools.partial(module.apply, train=False, groups=2, mutable=["auxiliary"])
    _, sown = jax.jit(run)(variables, x, text)
    (image,), (told,) = sown["auxiliary"]["image"], sown["auxiliary"]["text"]
    assert image.shape == told.shape == (4, 8)
    for x in (image, told):
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(told[:2], told[2:], atol=1e-6)
    assert np.abs(told[0] - told[1]).max() > 1e-3


# ---- mistakes ----


@pytest.mark.parametrize(
    ("size", "patch", "count"), [(8, 1, 1), (32, 1, 3), (32, 2, 2), (256, 1, 6)]
)
def test_doublings(size, patch, count):
    assert doublings(size, patch) == count


@pytest.mark.parametrize(
    ("size", "patch"), [(4, 1), (8, 2), (24, 1), (33, 1), (33, 2), (0, 1), (32, 0), (32, -1)]
)
def test_sizes_that_cannot_be_made(size, patch):
    with pytest.raises(UserError, match=rf"can't make images of size {size} in patches of {patch}"):
        doublings(size, patch)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"condition": "flim"}, r"config\.generator\.condition holds 'flim'. Did you mean 'film'"),
        ({"condition": "concat;film"}, r"config\.generator\.condition holds 'concat;film'"),
        ({"condition": "projection"}, "holds 'projection'"),
        ({"norm": "bach"}, r"config\.generator\.norm is 'bach'. Did you mean 'batch'"),
        ({"condition": "attention", "width": 3}, "4 heads of attention do not divide 3 channels"),
    ],
)
def test_generator_names_what_is_wrong(fields, line):
    generator = Generator(**NETWORK | fields)
    init = functools.partial(generator.init, KEY, train=False)
    with pytest.raises(UserError, match=line):
        jax.eval_shape(init, normal(2, 100), CONDITIONS["tokens"])


@pytest.mark.parametrize("kind", CONDITIONS)
def test_discriminator_names_what_is_wrong(kind):
    init = functools.partial(discriminator("concat,film").init, KEY, train=False)
    line = r"config\.discriminator\.condition holds 'film'"
    with pytest.raises(UserError, match=line):
        jax.eval_shape(init, normal(2, 8, 8, 3), CONDITIONS[kind])


# ---- strided blocks: DCGAN's ----


@pytest.mark.parametrize("kind", ["tokens", "labels"])
def test_strided_blocks(kind):
    """DCGAN's layers: transposed and strided 4x4 convolutions between batch norms."""
    condition = CONDITIONS[kind]
    fields = NETWORK | dict(image_size=16, patch=1, blocks="strided")
    generator = Generator(**fields, latent_dim=6, norm="batch", condition="concat,film,attention")
    z = normal(2, 6)
    variables = generator.init(jax.random.key(0), z, condition, train=False)
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim == 4]
    assert {x.shape[:2] for x in kernels} == {(4, 4)} and len(kernels) == 2
    images, changed = generator.apply(variables, z, condition, train=True, mutable=["batch_stats"])
    assert images.shape == (2, 16, 16, 3) and changed["batch_stats"]
    judge = Discriminator(**fields, condition="concat")
    variables = judge.init(jax.random.key(1), images, condition, train=False)
    logits, changed = judge.apply(variables, images, condition, train=True, mutable=["batch_stats"])
    assert logits.shape == (2,) and changed["batch_stats"]


def test_unknown_blocks():
    generator = Generator(**NETWORK | dict(image_size=16, patch=2), blocks="stridden")
    with pytest.raises(UserError, match="Did you mean 'strided'"):
        generator.init(jax.random.key(0), normal(2, 100), CONDITIONS["labels"], train=False)


def test_wrong_conditions_need_a_way_into_the_logits():
    judge = Discriminator(**NETWORK | dict(image_size=16, patch=2), condition="auxiliary")
    label = jnp.concatenate([CONDITIONS["labels"]] * 2)
    with pytest.raises(UserError, match="logits don't depend on the condition"):
        judge.init(jax.random.key(0), normal(2, 16, 16, 3), label, train=False)
