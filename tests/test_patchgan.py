"""PatchGAN: published sizes, PyTorch with the same weights, and what a logit sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import parallel
from aigc_jax.errors import UserError
from aigc_jax.models.patchgan import Discriminator
from aigc_jax.models.torch_translators import from_torch

RNG = jax.random.key(0)


def images(n=2, size=32, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (n, size, size, channels)).astype(np.float32)


def init(model, x, label=None):
    return jax.jit(functools.partial(model.init, train=False))(RNG, x, label)


def run(model, variables, x, label=None, **options):
    options = dict(train=True) | options
    call = functools.partial(model.apply, mutable=["batch_stats"], **options)
    return jax.jit(call)(variables, x, label)


def shapes(model, size, channels):
    x = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), RNG, x)
    logits, _ = jax.eval_shape(
        functools.partial(model.apply, train=True, mutable=["batch_stats"]), variables, x
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return count, logits.shape


@pytest.mark.parametrize(
    ("norm", "channels", "count"), [("instance", 3, 2_764_737), ("batch", 6, 2_768_705)]
)
@pytest.mark.parametrize("antialias", [False, True])
def test_published_sizes(norm, channels, count, antialias):
    model = Discriminator(norm=norm, antialias=antialias)
    assert shapes(model, 256, channels) == (count, (1, 30, 30))


@pytest.mark.parametrize(
    ("size", "num_layers", "side"), [(32, 2, 6), (32, 3, 2), (28, 2, 5), (37, 1, 16), (24, 3, 1)]
)
@pytest.mark.parametrize("antialias", [False, True])
def test_logits_of_other_images(size, num_layers, side, antialias):
    model = Discriminator(num_layers=num_layers, antialias=antialias)
    assert shapes(model, size, 1)[1] == (1, side, side)


def torch_twin(norm, channels, width, num_layers):
    """The published network, by its table."""
    nn = pytest.importorskip("torch").nn
    norms = {
        "batch": lambda c: nn.BatchNorm2d(c),
        "instance": lambda c: nn.InstanceNorm2d(c),
        "none": lambda c: nn.Identity(),
    }
    bias = norm != "batch"
    layers = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    before = width
    for i in range(1, num_layers + 1):
        after = width * min(2**i, 8)
        stride = 2 if i < num_layers else 1
        layers += [nn.Conv2d(before, after, 4, stride, 1, bias=bias), norms[norm](after)]
        layers += [nn.LeakyReLU(0.2)]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 1))


def to_torch(twin, params):
    """Copies Flax parameters, with biases and scales made visible, into the twin."""
    torch = pytest.importorskip("torch")
    convs = [layer for layer in twin if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in twin if isinstance(layer, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for i, layer in enumerate(convs):
            values = params[f"Conv_{i}"]
            layer.weight.copy_(torch.tensor(np.array(values["kernel"]).transpose(3, 2, 0, 1)))
            assert (layer.bias is None) == ("bias" not in values)
            if layer.bias is not None:
                layer.bias.copy_(torch.tensor(np.array(values["bias"])))
        for i, layer in enumerate(norms):
            values = params[f"BatchNorm_{i}"]
            layer.weight.copy_(torch.tensor(np.array(values["scale"])))
            layer.bias.copy_(torch.tensor(np.array(values["bias"])))
    return twin


def spread(params):
    """Biases away from 0 and kernels ten times as large, so that a slip of either shows."""

    def change(path, x):
        if path[-1].key == "kernel":
            return 5 * x
        return x + 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape)

    return jax.tree_util.tree_map_with_path(change, params)


@pytest.mark.parametrize(
    ("norm", "size", "num_layers"),
    [("batch", 32, 2), ("batch", 48, 3), ("instance", 32, 2), ("none", 64, 4)],
)
def test_outputs_and_gradients_equal_torchs(norm, size, num_layers):
    torch = pytest.importorskip("torch")
    model = Discriminator(width=4, num_layers=num_layers, norm=norm)
    x = images(2, size, 6)
    variables = init(model, x)
    variables = {**variables, "params": spread(variables["params"])}
    twin = to_torch(torch_twin(norm, 6, 4, num_layers), variables["params"])
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = twin(tx)
    ct = np.random.default_rng(1).normal(size=expected[:, 0].shape).astype(np.float32)
    (expected[:, 0] * torch.tensor(ct)).sum().backward()

    @jax.jit
    def both(x):
        call = functools.partial(model.apply, variables, train=True, mutable=["batch_stats"])
        logits, pullback, _ = jax.vjp(call, x, has_aux=True)
        return logits, pullback(ct)[0]

    logits, gradient = both(x)
    scale = expected.detach().abs().max().item()
    np.testing.assert_allclose(logits, expected[:, 0].detach().numpy(), 1e-4, 1e-5 * scale)
    expected = tx.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, 1e-3, 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(32, 48), (37, 45)])
def test_antialiased_outputs_and_gradients_equal_torchs(size):
    """CUT's: convolutions of stride 1, then every second pixel of a binomial filter's result."""
    twins = pytest.importorskip("torch_twins")
    twin = twins.spread(twins.PatchGAN(3, width=4, layers=2, blur=True))
    model, variables = from_torch(twins.arrays(twin))
    assert model == Discriminator(width=4, num_layers=2, norm="instance", antialias=True)
    x = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    tx = twins.nchw(x).requires_grad_()
    expected = twin(tx)
    ct = np.random.default_rng(1).normal(size=expected[:, 0].shape).astype(np.float32)
    (expected[:, 0] * twins.torch.tensor(ct)).sum().backward()

    @jax.jit
    def both(variables, x):
        logits, pullback = jax.vjp(functools.partial(model.apply, train=True), variables, x)
        return logits, pullback(ct)

    logits, (by_weight, by_image) = both(variables, x)
    np.testing.assert_allclose(logits, expected[:, 0].detach().numpy(), 1e-4, 1e-4)
    wanted = twins.nhwc(tx.grad)
    np.testing.assert_allclose(by_image, wanted, 1e-4, 1e-4 * np.abs(wanted).max())
    gradients = twins.arrays(twin) | {n: p.grad.numpy() for n, p in twin.named_parameters()}
    for name, layer in from_torch(gradients)[1]["params"].items():
        wanted, kernel = layer["kernel"], by_weight["params"][name]["kernel"]
        np.testing.assert_allclose(kernel, wanted, 1e-4, 1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(("num_layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(num_layers, field):
    model = Discriminator(width=1, num_layers=num_layers, norm="none")
    x = images(1, 96, 1)
    variables = init(model, x)
    positive = jax.tree.map(jnp.abs, variables)  # so that no leaky unit hides a path

    def middle(x):
        logits = model.apply(positive, x, train=True)
        return logits[0, logits.shape[1] // 2, logits.shape[2] // 2]

    seen = np.abs(jax.jit(jax.grad(middle))(jnp.abs(x)))[0, :, :, 0] > 0
    assert (seen.any(0).sum(), seen.any(1).sum(), seen.sum()) == (field, field, field**2)


def test_initial_weights():
    variables = init(Discriminator(width=32, num_layers=2), images())
    params = variables["params"]
    kernels = np.concatenate([np.ravel(params[f"Conv_{i}"]["kernel"]) for i in range(4)])
    np.testing.assert_allclose(kernels.std(), 0.02, rtol=0.02)
    scales = np.concatenate([params[f"BatchNorm_{i}"]["scale"] for i in range(2)])
    assert abs(scales.mean() - 1) < 0.01 and 0.015 < scales.std() < 0.025
    assert not np.any(params["Conv_0"]["bias"]) and not np.any(params["Conv_3"]["bias"])
    assert "bias" not in params["Conv_1"] and "batch_stats" in variables
    assert "batch_stats" not in init(Discriminator(width=4, norm="instance"), images())


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_groups_equal_a_call_each(norm):
    model, x = Discriminator(width=4, num_layers=2, norm=norm), images(8)
    variables = init(model, x)
    x[1::2] *= 0.3
    logits, _ = run(model, variables, x, groups=2)
    for k in range(2):
        np.testing.assert_allclose(logits[k::2], run(model, variables, x[k::2])[0], 1e-4, 1e-5)
    if norm == "batch":
        assert np.abs(logits - run(model, variables, x)[0]).max() > 1e-3


def test_eight_devices_equal_one():
    x = images(16)
    variables = init(Discriminator(width=4, num_layers=2), x)
    expected, stats = run(Discriminator(width=4, num_layers=2), variables, x)
    model = Discriminator(width=4, num_layers=2, axis_name=parallel.AXIS)
    call = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    logits, new = jax.pmap(call, axis_name=parallel.AXIS, in_axes=(None, 0))(
        variables, x.reshape(8, 2, 32, 32, 3)
    )
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, 1e-5, 1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, 1e-5, 1e-6), new, stats)


def test_labels_are_planes_beside_the_image():
    model, x = Discriminator(width=4, num_layers=2, norm="none", num_classes=3), images()
    label = np.array([2, 0], np.int32)
    variables = init(model, x, label)
    planes = np.zeros((2, 32, 32, 3), np.float32)
    planes[0, ..., 2] = planes[1, ..., 0] = 1
    plain = Discriminator(width=4, num_layers=2, norm="none")
    expected, _ = run(plain, variables, np.concatenate([x, planes], -1))
    np.testing.assert_allclose(run(model, variables, x, label)[0], expected, 1e-5, 1e-7)


def test_bfloat16_gives_float32_logits():
    model, x = Discriminator(width=4, num_layers=2, dtype=jnp.bfloat16), images()
    variables = init(model, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits, _ = run(model, variables, x)
    assert logits.dtype == jnp.float32
    exact, _ = run(Discriminator(width=4, num_layers=2), variables, x)
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"norm": "bach"}, "no norm 'bach'. Did you mean 'batch'"),
        ({"num_layers": 0}, "num_layers is 0: take at least 1"),
        ({"num_layers": 4}, "4 layers needs images of 48 pixels, not 32: take fewer num_layers"),
    ],
)
def test_wrong_fields_are_told(fields, line):
    with pytest.raises(UserError, match=line):
        shapes(Discriminator(**fields), 32, 3)
