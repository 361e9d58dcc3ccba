"""Attention against PyTorch's, and against the definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.attention import Cache, MapAttention, SelfAttention, attend, causal_mask

RNG = jax.random.key(0)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def arrays(t=5, s=5, b=2, heads=3, d=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (b, t, heads, d), (b, s, heads, d), (b, s, heads, d)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def by_definition(q, k, v, mask):
    """softmax(q k^T / sqrt(D)) v, each row by itself, in float64."""
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(mask[b, h, t])
        logits = [q[b, t, h].astype(np.float64) @ k[b, s, h] for s in seen]
        weights = np.exp(np.array(logits) / np.sqrt(q.shape[-1]))
        out[b, t, h] = (weights / weights.sum()) @ v[b, seen, h]
    return out


@pytest.mark.parametrize("s", [5, 7])  # 7: the keys of another sequence
def test_the_definition(s):
    q, k, v = arrays(s=s)
    mask = np.random.default_rng(1).uniform(size=(2, 3, 5, s)) < 0.5
    mask[..., 0] = True
    np.testing.assert_allclose(attend(q, k, v, mask), by_definition(q, k, v, mask), atol=1e-6)
    everything = np.ones_like(mask)
    np.testing.assert_allclose(attend(q, k, v), by_definition(q, k, v, everything), atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "causal", "keys"])
def test_values_and_gradients_are_pytorchs(torch, kind):
    q, k, v = arrays()
    padding = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool).reshape(2, 1, 1, 5)
    mask = {"none": None, "causal": causal_mask(5), "keys": padding}[kind]

    def loss(q, k, v):
        out = attend(q, k, v, mask)
        return (out * out).sum(), out

    grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    leaves = [torch.tensor(x).requires_grad_() for x in (q, k, v)]
    twin = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in leaves),
        attn_mask=torch.tensor(padding) if kind == "keys" else None,
        is_causal=kind == "causal",
    ).transpose(1, 2)
    (twin * twin).sum().backward()
    np.testing.assert_allclose(out, twin.detach(), atol=1e-6)
    for grad, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad, atol=1e-5)


def test_a_row_that_sees_nothing_takes_the_mean():
    q, k, v = arrays()
    out = attend(q, k, v, jnp.zeros((1, 1, 5, 5), bool))
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=1e-6)


def test_low_precision_stays_and_large_logits_are_safe():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays())
    out = attend(100 * q, 100 * k, v, causal_mask(5))
    assert out.dtype == jnp.bfloat16 and jnp.isfinite(out).all()
    np.testing.assert_allclose(out[:, 0], v[:, 0], atol=1e-2)  # the first sees itself alone


def make(causal=True, width=12, heads=3, seed=0):
    layer = SelfAttention(width, heads, causal)
    x = np.random.default_rng(seed).normal(size=(2, 5, width)).astype(np.float32)
    variables = layer.init(RNG, x)
    draw = np.random.default_rng(1).normal
    variables = jax.tree.map(lambda w: draw(0, 0.5, w.shape).astype(np.float32), variables)
    return layer, variables, x


@pytest.mark.parametrize("causal", [False, True])
def test_layer_is_pytorchs(torch, causal):
    layer, variables, x = make(causal)
    twin = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    params = variables["params"]
    pairs = {
        "in_proj_weight": params["qkv"]["kernel"].T,
        "in_proj_bias": params["qkv"]["bias"],
        "out_proj.weight": params["out"]["kernel"].T,
        "out_proj.bias": params["out"]["bias"],
    }
    twin.load_state_dict({name: torch.tensor(np.array(w)) for name, w in pairs.items()})
    padding = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
    y = layer.apply(variables, x, padding.reshape(2, 1, 1, 5))
    expected, _ = twin(
        *[torch.tensor(x)] * 3,
        key_padding_mask=torch.tensor(~padding),
        attn_mask=torch.tensor(~np.tri(5, dtype=bool)) if causal else None,
    )
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)


def test_one_position_at_a_time_gives_the_same():
    layer, variables, x = make()
    whole = layer.apply(variables, x)
    step = jax.jit(functools.partial(layer.apply, variables, method="step"))
    cache = Cache.empty(2, 5, 3, 4, jnp.float32)
    for t in range(5):
        y, cache = step(x[:, t : t + 1], jnp.int32(t), cache)
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-5)
    assert cache.k.shape == cache.v.shape == (2, 5, 3, 4)


def test_a_step_leaves_its_cache_as_it_was():
    layer, variables, x = make()
    cache = Cache.empty(2, 5, 3, 4, jnp.float32)
    _, new = layer.apply(variables, x[:, :1], jnp.int32(2), cache, method="step")
    assert not np.any(cache.k) and np.any(new.k[:, 2]) and not np.any(new.k[:, 3])


def test_causal_gradients():
    layer, variables, x = make()
    jacobian = jax.jacobian(lambda x: layer.apply(variables, x)[0].sum(-1))(x)[:, 0].sum(-1)
    seen = np.asarray(jacobian) != 0
    np.testing.assert_array_equal(seen, np.tri(5, dtype=bool))


def test_heads_that_do_not_divide():
    with pytest.raises(UserError, match="5 heads do not divide a width of 12"):
        SelfAttention(12, 5).init(RNG, jnp.zeros((1, 2, 12)))


# ---- of a map to itself ----


def make_map(channels=16):
    """The layer, with variables far from the first ones, and a map that isn't square."""
    layer, x = MapAttention(), np.random.default_rng(0).normal(size=(2, 4, 6, channels))
    shapes = jax.eval_shape(layer.init, RNG, x.astype(np.float32))
    draw = np.random.default_rng(1).normal
    return layer, jax.tree.map(lambda w: np.float32(draw(0, 0.5, w.shape)), shapes), np.float32(x)


def by_paper(torch, params, x):
    """x + sigma * out(softmax(query key^T) value) (Zhang et al. 2019, eq. 1 to 3), x of NCHW."""
    functional = torch.nn.functional
    through = lambda name, y: functional.conv2d(y, params[name].T[:, :, None, None])  # noqa: E731
    pooled = lambda name: functional.max_pool2d(through(name, x), 2).flatten(2)  # noqa: E731
    query, key, value = through("query", x).flatten(2), pooled("key"), pooled("value")
    weights = torch.softmax(torch.einsum("bcn,bcm->bnm", query, key), -1)
    seen = torch.einsum("bcm,bnm->bcn", value, weights).unflatten(2, x.shape[2:])
    return x + params["sigma"] * through("out", seen)


@pytest.mark.parametrize("channels", [16, 3])
def test_map_attention_and_its_gradients_are_the_papers(torch, channels):
    layer, variables, x = make_map(channels)
    params = variables["params"]
    assert params["query"]["kernel"].shape == params["key"]["kernel"].shape
    assert params["query"]["kernel"].shape == (channels, max(1, channels // 8))
    assert params["value"]["kernel"].shape == (channels, channels // 2)
    assert params["out"]["kernel"].shape == (channels // 2, channels)

    def loss(variables, x):
        y = layer.apply(variables, x)
        return jnp.sum(jnp.sin(y)), y

    (ours, dx), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, x)
    flat = lambda tree: {k: v if k == "sigma" else v["kernel"] for k, v in tree.items()}  # noqa: E731
    leaves = {k: torch.tensor(v).requires_grad_() for k, v in flat(params).items()}
    tx = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    ty = by_paper(torch, leaves, tx)
    ty.sin().sum().backward()
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), atol=1e-4)
    for name, gradient in flat(ours["params"]).items():
        np.testing.assert_allclose(gradient, leaves[name].grad, atol=1e-4, rtol=1e-4)


def test_map_attention_is_the_identity_at_first():
    layer, _, x = make_map()
    y, variables = layer.init_with_output(RNG, x)
    np.testing.assert_array_equal(y, x)
    assert variables["params"]["sigma"].shape == () and variables["params"]["query"].keys() == {
        "kernel"
    }


def test_map_attention_gives_its_kernels_to_the_hook():
    layer, variables, x = make_map()
    twice = MapAttention(reparam=lambda _, kernel: 2 * kernel)
    params = variables["params"]
    doubled = jax.tree.map(lambda w: 2 * w if w.ndim else w, params)
    expected = layer.apply({"params": doubled}, x)
    np.testing.assert_allclose(twice.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_map_attention_in_bfloat16():
    layer, variables, x = make_map()
    y = MapAttention(dtype=jnp.bfloat16).apply(variables, jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    exact = layer.apply(variables, jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05 * np.abs(exact).max())
