"""PatchNCE against PyTorch's cross-entropy of the published form, and its projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.losses.contrastive import patch_nce
from aigc_jax.models.patch_head import PatchHead, draw_places

KEY = jax.random.key(0)


def vectors(seed, shape=(2, 5, 4)):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def published(queries, keys, temperature):
    """[positive, all others] / temperature, the positive at 0, the diagonal of the rest at -10."""
    import torch

    q, k = (torch.tensor(x, requires_grad=True) for x in (queries, keys))
    positive = (q * k).sum(-1, keepdim=True)
    others = torch.bmm(q, k.transpose(1, 2))
    itself = torch.eye(q.shape[1], dtype=torch.bool)[None]
    logits = torch.cat([positive, others.masked_fill(itself, -10.0)], 2) / temperature
    target = torch.zeros(logits.shape[0] * logits.shape[1], dtype=torch.long)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target)
    loss.backward()
    return loss.item(), q.grad.numpy(), k.grad.numpy()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_patch_nce_is_the_published_cross_entropy(temperature):
    pytest.importorskip("torch")
    queries, keys = vectors(0), vectors(1)
    value, by_query, by_key = published(queries, keys, temperature)
    found, grads = jax.value_and_grad(patch_nce, (0, 1))(queries, keys, temperature)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(grads[0], by_query, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], by_key, rtol=1e-4, atol=1e-6)


def test_patch_nce_by_hand():
    """Two patches at right angles; and the images of a batch are apart."""
    axes = jnp.eye(2).reshape(1, 2, 2)
    right, wrong = (np.log1p(np.exp(x / 0.07)) for x in (-1, 1))
    np.testing.assert_allclose(patch_nce(axes, axes), right, atol=1e-6)
    np.testing.assert_allclose(patch_nce(axes, axes[:, ::-1]), wrong, rtol=1e-5)
    both = patch_nce(jnp.concatenate([axes, axes]), jnp.concatenate([axes, axes[:, ::-1]]))
    np.testing.assert_allclose(both, (right + wrong) / 2, rtol=1e-5)
    assert patch_nce(axes[:, :1], axes[:, :1]) == 0  # no negatives


# ---- the projection ----


def maps():
    rng = np.random.default_rng(2)
    shapes = [(2, 6, 5, 3), (2, 3, 3, 4)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_places_are_drawn_without_replacement():
    places = draw_places(KEY, maps(), 12)
    assert [len(p) for p in places] == [12, 9]  # all where there are fewer
    for at, x in zip(places, maps(), strict=True):
        assert len(set(at.tolist())) == len(at)
        assert min(at.tolist()) >= 0 and max(at.tolist()) < x.shape[1] * x.shape[2]
    again, other = (draw_places(key, maps(), 12) for key in (KEY, jax.random.key(1)))
    assert np.array_equal(places[0], again[0]) and not np.array_equal(places[0], other[0])
    drawn = jax.vmap(lambda key: draw_places(key, maps(), 12)[0])(jax.random.split(KEY, 500))
    often = np.bincount(np.ravel(drawn), minlength=30) / 500
    np.testing.assert_allclose(often, 12 / 30, atol=0.1)


def test_the_head_is_an_mlp_of_each_map():
    """Of the same places of every image, row by row; to unit vectors."""
    head, places = PatchHead(features=6), draw_places(KEY, maps(), 7)
    variables = head.init(KEY, maps(), places)
    variables = jax.tree.map(lambda x: np.asarray(9 * x + 0.1), variables)
    found = head.apply(variables, maps(), places)
    for i, (x, at) in enumerate(zip(maps(), places, strict=True)):
        first, second = (variables["params"][f"mlp_{i}_{k}"] for k in range(2))
        x = np.stack([x[:, p // x.shape[2], p % x.shape[2]] for p in at], 1)
        y = np.maximum(x @ first["kernel"] + first["bias"], 0) @ second["kernel"] + second["bias"]
        y = y / np.linalg.norm(y, axis=-1, keepdims=True)
        np.testing.assert_allclose(found[i], y, atol=1e-5)
        assert found[i].shape == (2, len(at), 6)


def test_a_dead_patch_has_a_gradient():
    head, places = PatchHead(features=6), draw_places(KEY, maps(), 7)
    dead = jax.tree.map(jnp.zeros_like, head.init(KEY, maps(), places))
    grads = jax.grad(lambda v: sum(x.sum() for x in head.apply(v, maps(), places)))(dead)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_initial_weights_are_glorots_times_a_fiftieth():
    x, places = [jnp.zeros((1, 4, 4, 128))], [jnp.arange(4)]
    params = PatchHead().init(KEY, x, places)["params"]
    for name, inputs in (("mlp_0_0", 128), ("mlp_0_1", 256)):
        std = 0.02 * np.sqrt(2 / (inputs + 256))
        np.testing.assert_allclose(params[name]["kernel"].std(), std, rtol=0.03)
        assert params[name]["kernel"].shape == (inputs, 256) and not params[name]["bias"].any()
