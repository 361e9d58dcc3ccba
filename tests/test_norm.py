"""Normalisation against PyTorch's, against itself on one device, and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.norm import BatchNorm, ConditionalBatchNorm, InstanceNorm

CHANNELS = 6


def images(seed, batch=8):
    normal = np.random.default_rng(seed).normal(size=(batch, 4, 3, CHANNELS))
    return (0.5 + normal * np.arange(1, CHANNELS + 1)).astype(np.float32)


def variables(**overrides):
    rng = np.random.default_rng(9)
    params = {k: rng.normal(size=CHANNELS).astype(np.float32) for k in ("scale", "bias")}
    stats = {"mean": np.zeros(CHANNELS, np.float32), "var": np.ones(CHANNELS, np.float32)}
    return {"params": params, "batch_stats": stats, **overrides}


def run(norm, values, x, **kwargs):
    return norm.apply(values, x, train=True, mutable=["batch_stats"], **kwargs)


def close(actual, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), actual, expected
    )


def value_and_gradients(norm, values, x, ct, **kwargs):
    def f(params, x):
        return run(norm, {**values, "params": params}, x, **kwargs)

    @jax.jit
    def both(params, x, ct):
        y, vjp, updates = jax.vjp(f, params, x, has_aux=True)
        return y, vjp(ct), updates["batch_stats"]

    return both(values["params"], x, ct)


def torch_twin(values):
    torch = pytest.importorskip("torch")
    twin = torch.nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(values["params"]["scale"]))
        twin.bias.copy_(torch.tensor(values["params"]["bias"]))
    return twin


def to_torch(x):
    return pytest.importorskip("torch").tensor(np.asarray(x).transpose(0, 3, 1, 2))


def from_torch(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def test_three_steps_and_evaluation_equal_torch():
    values, norm = variables(), BatchNorm()
    twin = torch_twin(values)
    for step in range(3):
        x, ct = images(step), images(step + 10)
        y, (dparams, dx), stats = value_and_gradients(norm, values, x, ct)
        tx = to_torch(x).requires_grad_()
        twin.zero_grad()
        ty = twin(tx)
        ty.backward(to_torch(ct))
        close(y, from_torch(ty))
        close(dx, from_torch(tx.grad), 2e-5)
        close(dparams["scale"], twin.weight.grad.numpy(), 5e-5)
        close(dparams["bias"], twin.bias.grad.numpy(), 5e-5)
        close(stats["mean"], twin.running_mean.numpy())
        close(stats["var"], twin.running_var.numpy())
        values = {**values, "batch_stats": stats}
    close(norm.apply(values, x, train=False), from_torch(twin.eval()(to_torch(x))))


def gradient_penalty(norm, values, x):
    """Gradients in the parameters and x of |d/dx sum(tanh y)^2|."""

    def penalty(params, x):
        def total(x):
            return jnp.tanh(run(norm, {**values, "params": params}, x)[0]).sum()

        return (jax.grad(total)(x) ** 2).sum()

    return jax.jit(jax.grad(penalty, (0, 1)))(values["params"], x)


def test_gradient_penalty_equals_torch():
    torch = pytest.importorskip("torch")
    values, x = variables(), images(0)
    twin, tx = torch_twin(values), to_torch(x).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.tanh(twin(tx)).sum(), tx, create_graph=True)
    (gradient**2).sum().backward()
    dparams, dx = gradient_penalty(BatchNorm(), values, x)
    close(dparams["scale"], twin.weight.grad.numpy(), 1e-4)
    close(dparams["bias"], twin.bias.grad.numpy(), 1e-4)
    close(dx, from_torch(tx.grad), 1e-4)


def test_groups_equal_a_call_each():
    values, norm = variables(), BatchNorm()
    x, ct = images(0), images(1)
    y, (dparams, dx), stats = value_and_gradients(norm, values, x, ct, groups=2)
    for k in range(2):
        part = value_and_gradients(norm, values, x[k::2], ct[k::2])
        close((y[k::2], dx[k::2]), (part[0], part[1][1]))
    parts = [value_and_gradients(norm, values, x[k::2], ct[k::2]) for k in range(2)]
    close(dparams, jax.tree.map(jnp.add, parts[0][1][0], parts[1][1][0]), 5e-5)
    close(stats, jax.tree.map(lambda a, b: (a + b) / 2, parts[0][2], parts[1][2]))


@pytest.mark.parametrize("groups", [1, 2])
def test_eight_devices_equal_one(groups):
    values = variables()
    x, ct = images(0, batch=32), images(1, batch=32)
    expected = value_and_gradients(BatchNorm(), values, x, ct, groups=groups)

    def step(values, x, ct):
        norm = BatchNorm(axis_name="data")
        y, (dparams, dx), stats = value_and_gradients(norm, values, x, ct, groups=groups)
        return y, (jax.lax.psum(dparams, "data"), dx), stats

    shards = [a.reshape(8, 4, *a.shape[1:]) for a in (x, ct)]
    y, (dparams, dx), stats = jax.pmap(step, axis_name="data", in_axes=(None, 0, 0))(
        values, *shards
    )
    actual = (y.reshape(x.shape), (jax.tree.map(lambda a: a[0], dparams), dx.reshape(x.shape)))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected[:2]), strict=True):
        assert np.abs(a - b).max() < 1e-6 * np.abs(b).max()
    for device in range(8):
        close(jax.tree.map(lambda a, d=device: a[d], stats), expected[2], 1e-6)


def test_gradient_penalty_on_eight_devices_equals_one():
    values, x = variables(), images(0, batch=32)
    dparams, dx = gradient_penalty(BatchNorm(), values, x)

    def step(values, x):
        dparams, dx = gradient_penalty(BatchNorm(axis_name="data"), values, x)
        return jax.lax.psum(dparams, "data"), dx

    shards = x.reshape(8, 4, *x.shape[1:])
    on_eight = jax.pmap(step, axis_name="data", in_axes=(None, 0))(values, shards)
    close(on_eight[1].reshape(x.shape), dx)
    close(jax.tree.map(lambda a: a[0], on_eight[0]), dparams, 5e-5)


def test_initialisation_needs_no_axis_and_leaves_the_statistics():
    values = BatchNorm(axis_name="data").init(jax.random.key(0), images(0), train=True)
    ones, zeros = np.ones(CHANNELS), np.zeros(CHANNELS)
    close(values["params"], {"scale": ones, "bias": zeros})
    close(values["batch_stats"], {"mean": zeros, "var": ones})


def test_without_scale_and_bias():
    norm, x = BatchNorm(use_scale=False, use_bias=False), images(0)
    y, values = norm.init_with_output(jax.random.key(0), x, train=True)
    assert "params" not in values
    close(y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5))


def test_momentum_and_unbiased_variance():
    x = images(0)
    _, updates = run(BatchNorm(momentum=0.75), variables(), x)
    expected = {
        "mean": 0.25 * x.mean((0, 1, 2)),
        "var": 0.75 + 0.25 * x.var((0, 1, 2), ddof=1),
    }
    close(updates["batch_stats"], expected)


def test_bfloat16_accumulates_in_float32():
    # Of 4096 ones a bfloat16 sum would stop at 256.
    x = 1 + 0.1 * np.random.default_rng(0).normal(size=(16, 16, 16, CHANNELS))
    x = jnp.asarray(x, jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    y, updates = run(norm, variables(), x)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    close(updates["batch_stats"]["mean"], 0.1 * wide.mean((0, 1, 2)))
    close(updates["batch_stats"]["var"], 0.9 + 0.1 * wide.var((0, 1, 2), ddof=1))


def test_variance_of_a_constant_is_not_negative():
    x = np.full((8, 4, 4, CHANNELS), 1234.567, np.float32)
    y, (_, dx), stats = value_and_gradients(BatchNorm(), variables(), x, x)
    assert np.isfinite(y).all() and np.isfinite(dx).all()
    assert (stats["var"] >= 0.9 - 1e-6).all()


def test_groups_must_divide_the_batch():
    with pytest.raises(UserError, match="3 groups do not divide a batch of 8") as error:
        run(BatchNorm(), variables(), images(0), groups=3)
    assert "\n" not in str(error.value)


# ---- scales and biases of each example ----


def affine(seed=5, batch=8):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(batch, CHANNELS)).astype(np.float32) for _ in range(2))


def by_hand(x, scale, bias, own, groups):
    """Each sub-batch by its moments, then the layer's scales and biases, then the example's."""
    wide = lambda v: v.reshape(-1, 1, 1, CHANNELS)  # noqa: E731
    rows = jnp.stack([x[k::groups] for k in range(groups)], 1)
    mean = rows.mean((0, 2, 3), keepdims=True)
    var = jnp.square(rows - mean).mean((0, 2, 3), keepdims=True)
    y = ((rows - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
    return (y * wide(scale) + wide(bias)) * wide(own[0]) + wide(own[1])


@pytest.mark.parametrize("groups", [1, 2])
def test_own_scales_and_biases_equal_the_formula(groups):
    values, x, ct, own = variables(), images(0), images(1), affine()

    def ours(params, x, own):
        now = {**values, "params": params}
        return run(BatchNorm(), now, x, groups=groups, affine=own)[0]

    def formula(params, x, own):
        return by_hand(x, params["scale"], params["bias"], own, groups)

    def both(f):
        y, pullback = jax.vjp(f, values["params"], x, own)
        return y, pullback(ct)

    close(jax.jit(lambda: both(ours))(), jax.jit(lambda: both(formula))(), 1e-4)
    plain = run(BatchNorm(), values, x, groups=groups)[1]
    close(run(BatchNorm(), values, x, groups=groups, affine=own)[1], plain)  # statistics


def conditional():
    """Variables of the layer for vectors (8, 5), and those."""
    rng = np.random.default_rng(3)
    kernels = {
        name: {"kernel": rng.normal(size=(5, CHANNELS)).astype(np.float32)}
        for name in ("gain", "bias")
    }
    stats = {"mean": rng.normal(size=CHANNELS), "var": rng.uniform(0.5, 2, CHANNELS)}
    stats = jax.tree.map(np.float32, stats)
    values = {"params": kernels, "batch_stats": {"BatchNorm_0": stats}}
    return values, rng.normal(size=(8, 5)).astype(np.float32)


@pytest.mark.parametrize("train", [True, False])
def test_conditional_batch_norm_equals_torchs_times_gains(train):
    """BN(x) * (1 + G c) + B c, with PyTorch's BN, and all gradients."""
    torch = pytest.importorskip("torch")
    (values, vector), x, ct = conditional(), images(0), images(1)
    norm = ConditionalBatchNorm()

    def f(params, x, vector):
        now = {**values, "params": params}
        return norm.apply(now, x, vector, train=train, mutable=["batch_stats"])

    y, pullback, updates = jax.vjp(f, values["params"], x, vector, has_aux=True)
    gradients = pullback(jnp.asarray(ct))
    twin = torch.nn.BatchNorm2d(CHANNELS, affine=False).train(train)
    stats = values["batch_stats"]["BatchNorm_0"]
    twin.running_mean.copy_(torch.tensor(stats["mean"]))
    twin.running_var.copy_(torch.tensor(stats["var"]))
    leaf = lambda a: torch.tensor(a).requires_grad_()  # noqa: E731
    gain, bias = (leaf(values["params"][name]["kernel"]) for name in ("gain", "bias"))
    tx, tv = to_torch(x).requires_grad_(), leaf(vector)
    wide = lambda a: a[:, :, None, None]  # noqa: E731
    ty = twin(tx) * (1 + wide(tv @ gain)) + wide(tv @ bias)
    ty.backward(to_torch(ct))
    close(y, from_torch(ty))
    kernels = {"gain": {"kernel": gain.grad.numpy()}, "bias": {"kernel": bias.grad.numpy()}}
    close(gradients, (kernels, from_torch(tx.grad), tv.grad.numpy()), 1e-4)
    after = {"mean": twin.running_mean.numpy(), "var": twin.running_var.numpy()}
    close(updates["batch_stats"]["BatchNorm_0"], after)


def test_conditional_batch_norm_of_zeros_is_the_plain_one():
    (values, vector), x = conditional(), images(0)
    plain, _ = BatchNorm(use_scale=False, use_bias=False).init_with_output(
        jax.random.key(0), x, train=True
    )
    zeros = {**values, "params": jax.tree.map(np.zeros_like, values["params"])}
    close(run(ConditionalBatchNorm(), zeros, x, vector=vector)[0], plain, 1e-6)
    close(run(ConditionalBatchNorm(), values, x, vector=0 * vector)[0], plain, 1e-6)


def test_conditional_batch_norm_on_eight_devices():
    (values, vector), x = conditional(), images(0)
    y, stats = run(ConditionalBatchNorm(), values, x, vector=vector)
    over = lambda x, c: run(ConditionalBatchNorm(axis_name="data"), values, x, vector=c)  # noqa: E731
    on_eight, found = jax.pmap(over, axis_name="data")(x[:, None], vector[:, None])
    close(on_eight[:, 0], y)
    close(jax.tree.map(lambda a: a[0], found), stats)


def test_conditional_batch_norm_in_bfloat16():
    (values, vector), x = conditional(), images(0)
    norm = ConditionalBatchNorm(dtype=jnp.bfloat16)
    y, stats = run(norm, values, jnp.asarray(x, jnp.bfloat16), vector=vector)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    exact, _ = run(ConditionalBatchNorm(), values, x, vector=vector)
    close(y.astype(jnp.float32), exact, 5e-2)


# ---- instance norm ----


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_equals_torchs(affine):
    torch = pytest.importorskip("torch")
    twin = torch.nn.InstanceNorm2d(CHANNELS, affine=affine)
    norm = InstanceNorm(use_scale=affine, use_bias=affine)
    params = variables()["params"] if affine else {}
    if affine:
        with torch.no_grad():
            twin.weight.copy_(torch.tensor(params["scale"]))
            twin.bias.copy_(torch.tensor(params["bias"]))
    x, ct = images(0), images(1)
    y, pullback = jax.vjp(lambda params, x: norm.apply({"params": params}, x), params, x)
    dparams, dx = pullback(jnp.asarray(ct))
    tx = to_torch(x).requires_grad_()
    ty = twin(tx)
    ty.backward(to_torch(ct))
    close(y, from_torch(ty))
    close(dx, from_torch(tx.grad), 5e-5)
    if affine:
        close(dparams["scale"], twin.weight.grad.numpy(), 5e-5)
        close(dparams["bias"], twin.bias.grad.numpy(), 5e-5)


def test_instance_norm_takes_each_image_alone():
    x = images(0) * np.arange(1, 9, dtype=np.float32).reshape(-1, 1, 1, 1)
    norm = InstanceNorm()
    y, values = norm.init_with_output(jax.random.key(0), x)
    assert set(values) == {"params"} and set(values["params"]) == {"scale", "bias"}
    moments = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    close(y, (x - moments[0]) / np.sqrt(moments[1] + 1e-5))
    for i in (0, 5):
        close(norm.apply(values, x[i : i + 1]), y[i : i + 1])


def test_instance_norm_in_bfloat16():
    x = jnp.asarray(images(0), jnp.bfloat16)
    y = InstanceNorm(use_scale=False, use_bias=False, dtype=jnp.bfloat16).apply({}, x)
    assert y.dtype == jnp.bfloat16
    exact = InstanceNorm(use_scale=False, use_bias=False).apply({}, x.astype(jnp.float32))
    close(y.astype(jnp.float32), exact, 2e-2)
