"""StyleGAN2 equals its textbook form in PyTorch, and is independent of how a batch is laid out."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.stylegan2 import Discriminator, Generator, layer_noise

SIZE, CLASSES = 8, 3
G_FIELDS = dict(image_size=SIZE, latent_dim=12, w_dim=10, width=8, channel_base=64)
D_FIELDS = dict(image_size=SIZE, width=8, channel_base=64, mapping_layers=2, mbstd_group=4)
near = partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shaken(variables):
    """Biases, strengths and means that a mistake would show in."""
    leaves, tree = jax.tree.flatten(variables)
    shaken = [x + 0.3 * normal(i, *x.shape) if x.ndim < 2 else x for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, shaken)


def labels(n, num_classes):
    return jnp.arange(n) % num_classes if num_classes else None


@cache
def generator(num_classes=0, **fields):
    """The module, its variables, latents and labels."""
    g = Generator(**{**G_FIELDS, **fields}, num_classes=num_classes)
    z, label = normal(0, 8, 12), labels(8, num_classes)
    variables = jax.jit(partial(g.init, train=False))(jax.random.key(0), z, label)
    return g, shaken(variables), z, label


@cache
def discriminator(num_classes=0, **fields):
    """The module, its variables, images and labels."""
    d = Discriminator(**D_FIELDS, num_classes=num_classes, **fields)
    x, label = normal(1, 8, SIZE, SIZE, 3), labels(8, num_classes)
    variables = jax.jit(partial(d.init, train=False))(jax.random.key(0), x, label)
    return d, shaken({"params": variables["params"]}), x, label


@cache
def compiled(module, **static):
    return jax.jit(partial(module.apply, **static))


def run(module, variables, *args, keys=None, **arguments):
    """`apply` outside training, unless told; compiled once."""
    keys = {} if keys is None else {"keys": keys}
    return compiled(module, **{"train": False, **arguments})(variables, *args, **keys)


def keys_of(n, seed=7):
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(n))


# ---- the published networks ----


@pytest.mark.parametrize(
    ("num_classes", "of_g", "of_d"), [(10, 20_215_315, 23_089_664), (0, 19_947_539, 20_720_641)]
)
def test_parameter_counts_are_the_published(num_classes, of_g, of_d):
    label = labels(4, num_classes)
    for module, x, count in (
        (Generator(num_classes=num_classes), jnp.zeros((4, 512)), of_g),
        (Discriminator(num_classes=num_classes), jnp.zeros((4, 32, 32, 3)), of_d),
    ):
        init = partial(module.init, train=False)
        params = jax.eval_shape(init, jax.random.key(0), x, label)["params"]
        assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(("size", "num_ws"), [(8, 4), (32, 8), (256, 14)])
def test_sizes(size, num_ws):
    g = Generator(size, 1, width=8)
    d = Discriminator(size, width=8, architecture="resnet")

    def shapes(key):
        z, x = jnp.ones((2, 512)), jnp.ones((2, size, size, 1))
        images, _ = g.init_with_output(key, z, train=False)
        logits, _ = d.init_with_output(key, x, train=False)
        return images, logits

    images, logits = jax.eval_shape(shapes, jax.random.key(0))
    assert images.shape == (2, size, size, 1) and images.dtype == jnp.float32
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    assert g.num_ws == num_ws


# ---- the same in PyTorch ----


def twin_of(module, variables):
    pytest.importorskip("torch")
    import twin_stylegan2 as twin

    names = ("image_size", "width", "channel_base", "num_classes", "mapping_layers")
    of_g = ("channels", "latent_dim", "w_dim")
    of_d = ("architecture", "mbstd_group")
    is_g = isinstance(module, Generator)
    fields = {name: getattr(module, name) for name in (*names, *(of_g if is_g else of_d))}
    network = (twin.Generator if is_g else twin.Discriminator)(**fields)
    return twin.copy_weights(variables, network)


def to_torch(x):
    import torch

    if x is None:
        return None
    x = torch.from_numpy(np.array(x))
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x.long() if x.ndim == 1 else x


def to_images(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def torch_noise(keys):
    layers = [(4, 1), (8, 0), (8, 1), (16, 0), (16, 1)]
    return [to_torch(layer_noise(keys, *layer)) for layer in layers]


@pytest.mark.parametrize(
    ("num_classes", "with_keys"), [(0, False), (CLASSES, False), (CLASSES, True)]
)
def test_generator_equals_pytorch(num_classes, with_keys):
    g, variables, z, label = generator(num_classes, image_size=16)
    network = twin_of(g, variables).eval()
    keys = keys_of(8) if with_keys else None
    noise = torch_noise(jax.vmap(jax.random.split)(keys)[:, 0] if with_keys else None)
    ours = run(g, variables, z, label, keys=keys)
    near(ours, to_images(network(to_torch(z), to_torch(label), noise)))


def test_gradients_and_mean_of_w_equal_pytorchs():
    g, variables, z, label = generator(CLASSES)
    network = twin_of(g, variables).train()
    images = network(to_torch(z), to_torch(label), torch_noise(None))
    images.tanh().sum().backward()

    def loss(params):
        images, changed = g.apply(
            {**variables, "params": params}, z, label, train=True, mutable=["batch_stats"]
        )
        return jnp.tanh(images).sum(), changed

    ours, changed = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    near(changed["batch_stats"]["w_mean"], network.w_mean)
    near_gradients(ours, network)


def near_gradients(ours, network):
    """Ours and the twin's, by names, each to a thousandth of its largest entry."""
    from twin_stylegan2 import flat

    theirs = dict(network.named_parameters())
    for name, value in flat(ours):
        gradient = theirs[name].grad
        if gradient is None:
            assert not value.any()
            continue
        if name.endswith("kernel"):
            gradient = gradient.T if gradient.ndim == 2 else gradient.permute(2, 3, 1, 0)
        elif name.endswith("constant"):
            gradient = gradient.permute(0, 2, 3, 1)
        scale = float(gradient.abs().max()) + 1e-6
        np.testing.assert_allclose(value / scale, gradient / scale, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(("architecture", "num_classes"), [("orig", CLASSES), ("resnet", 0)])
def test_discriminator_and_r1_equal_pytorch(architecture, num_classes):
    torch = pytest.importorskip("torch")
    d, variables, x, label = discriminator(num_classes, architecture=architecture)
    network = twin_of(d, variables)
    images = to_torch(x).requires_grad_()
    logits = network(images, to_torch(label))
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    ((gradient**2).sum() + logits.tanh().sum()).backward()

    def loss(params):
        apply = lambda x: d.apply({"params": params}, x, label, train=True)  # noqa: E731
        logits, pullback = jax.vjp(apply, x)
        (gradient,) = pullback(jnp.ones_like(logits))
        return (gradient**2).sum() + jnp.tanh(logits).sum(), logits

    ours, our_logits = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    near(our_logits, logits.detach())
    near_gradients(ours, network)


# ---- the halves, and what they are used for ----


def test_halves_make_the_whole():
    g, variables, z, label = generator(CLASSES)
    ws = run(g, variables, z, label, method="mapping")
    assert ws.shape == (8, g.num_ws, 10) and ws.dtype == jnp.float32
    near(run(g, variables, ws, method="synthesis"), run(g, variables, z, label))


def test_path_length_equals_pytorchs():
    torch = pytest.importorskip("torch")
    g, variables, z, _ = generator()
    network = twin_of(g, variables)
    noise = normal(5, 8, SIZE, SIZE, 3) / SIZE
    w = network.mapping_network(to_torch(z), None)
    ws = torch.stack([w] * g.num_ws, 1)
    images = network.synthesis(ws.unbind(1), torch_noise(keys_of(8)))
    (slope,) = torch.autograd.grad((images * to_torch(noise)).sum(), ws, create_graph=True)
    lengths = slope.square().sum(2).mean(1).sqrt()
    (lengths - 0.1).square().mean().backward()

    def penalty(params):
        apply = partial(g.apply, {**variables, "params": params}, train=True)
        ws = apply(z, method="mapping")
        of_ws = jax.grad(lambda ws: (apply(ws, keys_of(8), method="synthesis") * noise).sum())
        lengths = jnp.sqrt((of_ws(ws) ** 2).sum(2).mean(1))
        return ((lengths - 0.1) ** 2).mean(), lengths

    ours, our_lengths = jax.jit(jax.grad(penalty, has_aux=True))(variables["params"])
    near(our_lengths, lengths.detach())
    near_gradients(ours, network)


def test_each_layer_has_its_w():
    g, variables, z, _ = generator()
    ws = run(g, variables, z, method="mapping")
    images = run(g, variables, ws, method="synthesis")
    for i in range(g.num_ws):
        other = run(g, variables, ws.at[:, i].add(1.0), method="synthesis")
        assert jnp.abs(other - images).mean() > 1e-3


def test_mean_of_w_moves_in_training_alone():
    g, variables, z, label = generator(CLASSES)
    before = variables["batch_stats"]["w_mean"]
    ws = run(g, variables, z, label, method="mapping")
    train = dict(train=True, mutable="batch_stats", method="mapping")
    _, changed = run(g, variables, z, label, **train)
    near(changed["batch_stats"]["w_mean"], 0.995 * before + 0.005 * ws[:, 0].mean(0))
    _, changed = run(g, variables, z, label, mutable="batch_stats", method="mapping")
    np.testing.assert_array_equal(changed["batch_stats"]["w_mean"], before)
    fresh = jax.jit(partial(g.init, train=True, method="mapping"))(jax.random.key(0), z, label)
    np.testing.assert_array_equal(fresh["batch_stats"]["w_mean"], 0)


def test_truncation():
    g, variables, z, label = generator(CLASSES)
    plain = run(g, variables, z, label)
    near(run(g.clone(truncation=1.0), variables, z, label), plain)
    mean = run(g.clone(truncation=0.0), variables, z, label)
    near(mean, jnp.broadcast_to(mean[:1], mean.shape))
    half = run(g.clone(truncation=0.5), variables, z, label, method="mapping")
    ws = run(g, variables, z, label, method="mapping")
    w_mean = variables["batch_stats"]["w_mean"].reshape(1, 1, -1)
    near(half, (ws + w_mean) / 2)
    near(run(g.clone(truncation=0.5), variables, z, label, train=True), plain)


# ---- randomness is the keys' ----


def test_keys_bring_noise():
    g, variables, z, label = generator(CLASSES)
    plain, noisy = run(g, variables, z, label), run(g, variables, z, label, keys=keys_of(8))
    assert jnp.abs(plain - noisy).mean() > 1e-3
    near(run(g, variables, z, label, keys=keys_of(8)), noisy)
    assert jnp.abs(run(g, variables, z, label, keys=keys_of(8, 1)) - noisy).mean() > 1e-3


def test_images_are_those_of_their_keys_whatever_the_batch():
    g, variables, z, label = generator(CLASSES, style_mixing=0.9)
    keys = keys_of(8)
    whole = run(g, variables, z, label, keys=keys, train=True)
    order = jnp.array([5, 2, 7])
    near(run(g, variables, z[order], label[order], keys=keys[order], train=True), whole[order])


def test_styles_mix_in_training_with_keys():
    g, variables, z, label = generator(CLASSES, noise=False)
    mixing = g.clone(style_mixing=0.5)
    plain = run(g, variables, z, label)
    for calm in (dict(train=True), dict(keys=keys_of(8))):
        near(run(mixing, variables, z, label, **calm), plain)
    mixed = run(mixing, variables, z, label, train=True, keys=keys_of(8))
    unlike = jnp.abs(mixed - plain).mean((1, 2, 3)) > 1e-4
    assert 0 < unlike.sum() < 8


def test_no_noise_has_no_strengths():
    g = Generator(**G_FIELDS, noise=False)
    init = partial(g.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), normal(0, 2, 12))["params"]
    assert set(params["block_8"]["layer_0"]) == {"conv", "bias"}


# ---- labels ----


@pytest.mark.parametrize(
    ("condition", "extra"), [("style", 10), ("concat", 3), ("style, concat", 13), ("", 0)]
)
def test_ways_of_the_generator(condition, extra):
    g = Generator(**G_FIELDS, num_classes=CLASSES, condition=condition)
    z, label = normal(0, 8, 12), labels(8, CLASSES)
    ws, variables = g.init_with_output(jax.random.key(0), z, label, train=False, method="mapping")
    kernel = variables["params"]["mapping_network"]["layer_0"]["kernel"]
    assert kernel.shape == (12 + extra, 10)
    other = run(g, variables, z, (label + 1) % CLASSES, method="mapping")
    assert (jnp.abs(ws - other).max() > 1e-5) == bool(condition)


def test_a_label_that_says_nothing_is_one_more():
    g, variables, z, label = generator(CLASSES)
    nothing = run(g, variables, z, jnp.full_like(label, CLASSES))
    assert (
        np.isfinite(nothing).all() and jnp.abs(nothing - run(g, variables, z, label)).max() > 0.01
    )


@pytest.mark.parametrize("condition", ["projection", "concat", "projection,auxiliary"])
def test_sub_batches_and_their_labels(condition):
    d, variables, x, _ = discriminator(CLASSES, condition=condition)
    label = jnp.array([0, 1, 2, 0])
    logits, sown = run(d, variables, x, label, groups=2, mutable="auxiliary")
    for k in range(2):
        near(logits[k::2], run(d, variables, x[k::2], label))
    both = jnp.stack([label, (label + 1) % CLASSES], 1).reshape(-1)  # right and wrong
    two = run(d, variables, x, both, groups=2)
    near(two[::2], logits)
    assert two.shape == (16,) and jnp.abs(two[1::2] - logits).min() > 0
    if "auxiliary" in condition:
        assert sown["auxiliary"]["logits"][0].shape == (8, CLASSES)


@pytest.mark.parametrize("condition", ["auxiliary", ""])
def test_logits_that_do_not_depend_on_labels(condition):
    d, variables, x, label = discriminator(CLASSES, condition=condition)
    near(run(d, variables, x, label), run(d, variables, x, label[::-1]))
    with pytest.raises(UserError, match="mismatch is above 0"):
        run(d, variables, x, label, groups=2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Generator(24), "size 24: take a power of two from 8 on"),
        (Generator(4), "size 4"),
        (Generator(16, condition="styel"), "config.generator.condition holds 'styel'.*style"),
        (Discriminator(48), "size 48"),
        (Discriminator(16, architecture="resnt"), "architecture is 'resnt'.*resnet"),
        (
            Discriminator(16, num_classes=3, condition="concat,auxiliary"),
            "shows what auxiliary is to tell",
        ),
    ],
)
def test_mistakes_are_told(module, message):
    size = module.image_size
    x = jnp.ones((2, 512)) if isinstance(module, Generator) else jnp.ones((2, size, size, 3))
    with pytest.raises(UserError, match=message) as error:
        module.init(jax.random.key(0), x, jnp.zeros(2, int), train=False)
    assert "\n" not in str(error.value)


# ---- devices, memory, precision ----


def test_discriminator_on_devices_equals_one():
    d, variables, _, _ = discriminator(CLASSES)
    x, label = normal(3, 32, SIZE, SIZE, 3), labels(16, CLASSES)

    def step(d, variables, x, label):
        def loss(params):
            logits = d.apply({"params": params}, x, label, train=True, groups=2)
            return jnp.tanh(logits).mean(), logits

        return jax.grad(loss, has_aux=True)(variables["params"])

    gradient, logits = jax.jit(partial(step, d))(variables, x, label)
    split = lambda x: x.reshape(8, -1, *x.shape[1:])  # noqa: E731
    spread = jax.pmap(
        partial(step, d.clone(axis_name="data")), axis_name="data", in_axes=(None, 0, 0)
    )
    gradients, theirs = spread(variables, split(x), split(label))
    near(theirs.reshape(-1), logits)
    jax.tree.map(lambda a, b: near(a.mean(0), b), gradients, gradient)


def test_mean_of_w_on_devices_equals_one():
    g, variables, z, label = generator(CLASSES)
    train = dict(train=True, mutable=["batch_stats"], method="mapping")
    expected = g.apply(variables, z, label, **train)[1]
    there = partial(g.clone(axis_name="data").apply, **train)
    changed = jax.pmap(there, axis_name="data", in_axes=(None, 0, 0))(
        variables, z[:, None], label[:, None]
    )[1]
    jax.tree.map(lambda a, b: near(a, np.broadcast_to(b, a.shape)), changed, expected)


def test_remat_changes_nothing():
    g, variables, z, label = generator(CLASSES)
    d, of_d, x, _ = discriminator(CLASSES)
    again, d_again = g.clone(remat=True), d.clone(remat=True)
    near(
        run(again, variables, z, label, keys=keys_of(8)),
        run(g, variables, z, label, keys=keys_of(8)),
    )
    near(run(d_again, of_d, x, label), run(d, of_d, x, label))

    def loss(params):
        images = again.apply({**variables, "params": params}, z, label, train=True, keys=keys_of(8))
        return d_again.apply(of_d, images, label, train=True).sum()

    found = str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))
    assert found.count("remat2[") + found.count("checkpoint[") >= 3  # 4x4 and 8x8 of G, 8x8 of D


def test_half_precision():
    g, variables, z, label = generator(CLASSES)
    exact = run(g, variables, z, label)
    half = run(g.clone(dtype=jnp.bfloat16), variables, z, label)
    assert half.dtype == jnp.float32
    assert jnp.abs(half - exact).max() < 0.03 * exact.std() * 3
    d, variables, x, label = discriminator(CLASSES, architecture="resnet")
    exact = run(d, variables, x, label)
    half = run(d.clone(dtype=jnp.bfloat16), variables, x, label)
    assert half.dtype == jnp.float32
    assert jnp.abs(half - exact).max() < 0.05 * max(1, jnp.abs(exact).max())


def test_the_twin_by_scaling_is_the_twin():
    """The benchmark's other side makes no kernels for each example."""
    torch = pytest.importorskip("torch")
    import twin_stylegan2

    made = []
    for scaled in (False, True):
        torch.manual_seed(0)
        network = twin_stylegan2.Generator(16, 3, 8, 8, 2, width=8, channel_base=1024)
        for module in network.modules():
            if isinstance(module, twin_stylegan2.ModulatedConv):
                module.scaled = scaled
        with torch.no_grad():
            made.append(network.eval()(torch.randn(3, 8)).numpy())
    np.testing.assert_allclose(*made, atol=1e-4)
