"""The restoring U-Net against PyTorch with the same weights, its masks, and the published size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models
from aigc_jax.errors import UserError
from aigc_jax.layers.shuffle import shuffle, unshuffle
from aigc_jax.models.unet import Restorer, multiple

KEY = jax.random.key(0)
KINDS = ("plain", "partial", "gated")
kinds = pytest.mark.parametrize("conv", KINDS)


def images(height=16, width=8, channels=3, n=2):
    shape = (n, height, width, channels)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def known(height=16, width=8, n=2):
    mask = np.random.default_rng(1).uniform(size=(n, height, width, 1)) < 0.7
    mask[:, 2:9, 1:6] = 0
    return mask.astype(np.float32)


def near(actual, expected, tolerance=1e-4):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, tolerance, tolerance * np.abs(expected).max())


def variables_of(model, x, mask=None):
    """Variables of a healthy size: those of `init` make the identity."""
    like, rng = jax.eval_shape(model.init, KEY, x, mask), np.random.default_rng(0)
    scale = lambda a: np.prod(a.shape[:-1]) ** -0.5 if a.ndim > 1 else 0.2  # noqa: E731
    return jax.tree.map(lambda a: rng.normal(0, scale(a), a.shape).astype("f4"), like)


def small(**fields):
    return Restorer(width=4, levels=2, blocks=1, **fields)


class Twin:
    """The network in PyTorch, by the arrays of its parameters; a pair (x, mask) goes through."""

    def __init__(self, torch, params, model):
        self.torch, self.F, self.model = torch, torch.nn.functional, model
        leaf = lambda a: torch.tensor(np.asarray(a), requires_grad=True)  # noqa: E731
        self.params = jax.tree.map(leaf, params)

    def conv(self, x, p, stride=1, dilation=1, padding=None):
        padding = dilation * (p["kernel"].shape[0] // 2) if padding is None else padding
        w = p["kernel"].permute(3, 2, 0, 1)
        return self.F.conv2d(x, w, p.get("bias"), stride, padding, dilation)

    def layer(self, y, name, activated=True, **fields):
        p, (x, mask) = self.params[name]["conv"], y
        if self.model.conv == "gated":
            a, g = self.conv(x, p["Conv_0"], **fields).chunk(2, 1)
            return (self.F.elu(a) if activated else a) * self.torch.sigmoid(g), None
        if self.model.conv == "partial":
            x, mask = self.partial(x, mask, p, **fields)
        else:
            x = self.conv(x, p, **fields)
        return (self.F.relu(x) if activated else x), mask

    def partial(self, x, mask, p, **fields):
        """The ratio of sums over all channels, as NVIDIA's layer has it, but exact."""
        mask = mask.expand_as(x)
        count = self.conv(mask, {"kernel": self.torch.ones_like(p["kernel"])}, **fields)
        window = np.prod(p["kernel"].shape[:3])
        y = self.conv(x * mask, {"kernel": p["kernel"]}, **fields)
        new = (count > 0).float()
        y = y * window / count.clamp(min=1e-3) + p["bias"].reshape(1, -1, 1, 1)
        return y * new, new[:, :1]

    def block(self, y, name, dilation=1):
        inside = self.layer(y, f"{name}_a", dilation=dilation)
        change, mask = self.layer(inside, f"{name}_b", activated=False)
        return y[0] + change, mask

    def down(self, y, name):
        if self.model.conv != "plain":
            return self.layer(y, name, stride=2)
        p = self.params[name]
        features = p["kernel"].shape[-1]  # a 2x2 convolution of stride 2
        kernel = p["kernel"].reshape(2, 2, -1, features)
        return self.conv(y[0], {"kernel": kernel, "bias": p["bias"]}, 2, padding=0), None

    def up(self, y, skip, name):
        if self.model.conv == "plain":
            p, features = self.params[name], skip[0].shape[1]
            kernel = p["kernel"].reshape(-1, 2, 2, features).permute(0, 3, 1, 2)
            bias = p["bias"].reshape(2, 2, features)
            x = self.F.conv_transpose2d(y[0], kernel, stride=2)
            tiled = bias.permute(2, 0, 1).repeat(1, x.shape[2] // 2, x.shape[3] // 2)
            return skip[0] + x + tiled[None], None
        twice = lambda a: self.F.interpolate(a, scale_factor=2, mode="nearest")  # noqa: E731
        x = self.torch.cat([twice(y[0]), skip[0]], 1)
        if y[1] is None:
            return self.layer((x, None), name)
        masks = twice(y[1]).expand(-1, y[0].shape[1], -1, -1), skip[1].expand_as(skip[0])
        return self.layer((x, self.torch.cat(masks, 1)), name)

    def __call__(self, x, mask):
        seen = (x, mask) if self.model.conv == "partial" else (self.torch.cat([x, mask], 1), None)
        y, skips = self.layer(seen, "first", activated=self.model.conv != "plain"), []
        for i in range(self.model.levels):
            skips.append(self.block(y, f"down_{i}_block_0"))
            y = self.down(skips[-1], f"down_{i}")
        y = self.block(y, "bottom_block_0")
        for i, dilation in enumerate(self.model.dilations):
            y = self.block(y, f"dilated_{i}", dilation)
        for i in reversed(range(self.model.levels)):
            y = self.block(self.up(y, skips[i], f"up_{i}"), f"up_{i}_block_0")
        y = self.conv(y[0], self.params["last"])
        return x + y if self.model.residual else y


@kinds
def test_outputs_and_gradients_equal_torchs(conv):
    twins = pytest.importorskip("torch_twins")
    model = small(conv=conv, dilations=(2, 3), residual=conv == "plain")
    mask = known()
    x = images() * mask
    variables = variables_of(model, x, mask)
    twin = Twin(twins.torch, variables["params"], model)
    tx = twins.nchw(x).requires_grad_()
    expected = twin(tx, twins.nchw(mask))
    ct = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    (expected * twins.nchw(ct)).sum().backward()

    @jax.jit
    def both(variables, x):
        y, pullback = jax.vjp(lambda v, x: model.apply(v, x, mask), variables, x)
        return y, pullback(ct)

    y, (by_weight, by_image) = both(variables, x)
    near(y, twins.nhwc(expected))
    near(by_image, twins.nhwc(tx.grad))
    wanted = jax.tree.map(lambda p: p.grad.numpy(), twin.params)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest)
    jax.tree.map(compare, by_weight["params"], wanted)


def test_drunets_size():
    """32,640,960 parameters for colour images and a map of the noise level, which isn't there."""
    model = Restorer(blocks=4, use_bias=False)
    params = jax.eval_shape(model.init, KEY, images(64, 64))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 32_640_960 - 9 * 64
    assert multiple(model) == 8


@pytest.mark.parametrize("mask", [None, known()], ids=["whole", "holes"])
def test_it_begins_as_the_identity(mask):
    x, model = images(), small()
    y, _ = jax.jit(model.init_with_output)(KEY, x, mask)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("conv", ["plain", "gated"])
def test_shuffle_sees_blocks_as_channels(conv):
    """It is the network of four times the channels on the shuffled image and mask."""
    fields = dict(width=4, levels=1, blocks=1, conv=conv, residual=False)
    model, x, mask = Restorer(shuffle=2, **fields), images(), known()
    there = Restorer(channels=12, **fields)
    variables = variables_of(model, x, mask)
    blocks = unshuffle(np.concatenate([x, mask], -1), 2)
    near(
        jax.jit(model.apply)(variables, x, mask),
        shuffle(jax.jit(there.apply)(variables, blocks), 2),
    )
    assert multiple(model) == 4


def test_without_biases_it_is_homogeneous():
    model, x = small(use_bias=False), images()
    run = jax.jit(functools.partial(model.apply, variables_of(model, x)))
    near(run(0.3 * x), 0.3 * run(x))


def test_partial_convolutions_dont_see_what_holes_hide():
    model, x, mask = small(conv="partial", residual=False), images(), known()
    run = jax.jit(functools.partial(model.apply, variables_of(model, x, mask)))
    np.testing.assert_array_equal(run(x, mask), run(np.where(mask, x, 7), mask))
    assert np.abs(run(x, mask) - run(x, None)).max() > 1e-2
    near(run(x, np.ones_like(mask)), run(x, None), 1e-6)


@pytest.mark.parametrize("conv", ["partial", "gated"])
def test_dilations_see_further(conv):
    """What reaches the middle of an image from its border."""
    mask = np.ones((1, 64, 64, 1), np.float32)
    x = images(64, 64, n=1)
    fields = dict(width=2, levels=1, blocks=0, conv=conv, residual=False)
    reach = []
    for dilations in ((), (2, 4, 8)):
        model = Restorer(dilations=dilations, **fields)
        variables = variables_of(model, x, mask)
        middle = lambda x, m=model, v=variables: m.apply(v, x, mask)[0, 32, 32].sum()  # noqa: E731
        seen = np.abs(jax.jit(jax.grad(middle))(x)[0]).sum(-1)
        reach.append(np.ptp(np.nonzero(seen)[0]) + 1)
    assert reach[0] < 16 and reach[1] > 32


@pytest.mark.parametrize("conv", KINDS)
def test_half_precision(conv):
    model, x, mask = small(conv=conv, dtype=jnp.bfloat16), images(), known()
    variables = variables_of(model, x, mask)
    y = jax.jit(model.apply)(variables, x, mask)
    exact = jax.jit(small(conv=conv).apply)(variables, x, mask)
    assert y.dtype == jnp.float32
    near(y, exact, 0.05)


def test_a_config_builds_it():
    from ml_collections import ConfigDict

    section = ConfigDict({"name": "unet", "conv": "gated", "dilations": (2, 4), "blocks": 0})
    model = models.build(section, "Restorer", image_size=32, channels=1, dtype=jnp.float32)
    assert model == Restorer(channels=1, conv="gated", dilations=(2, 4), blocks=0)
    assert models.multiple(model) == 8


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"conv": "partail"}, "no conv 'partail'. Did you mean 'partial'"),
        ({"blocks": 0}, "unet's blocks is 0: take at least 1"),
        (
            {"levels": 4},
            "shuffle 1 takes sides that are multiples of 16, not 24x32",
        ),
        ({"shuffle": 0}, "unet's shuffle is 0: take 1"),
        ({"shuffle": 2, "conv": "partial"}, "unet's shuffle is 2: take 1"),
    ],
)
def test_mistakes_are_told(fields, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(Restorer(**fields).init, KEY, images(24, 32))
