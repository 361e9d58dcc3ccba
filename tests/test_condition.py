"""Ways to feed a condition: each layer against NumPy or PyTorch, and what a batch's fields become.

`concat_label` and `LabelConv` are tested with the networks that use them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import (
    CrossAttention,
    Encoded,
    Film,
    Projection,
    Text,
    discriminator_ways,
    each_of,
    for_each,
    for_grid,
    nothing,
    of_batch,
    said,
)

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scattered(module, *args):
    """Parameters of the module, none of them at its first value."""
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [normal(*x.shape, seed=i) for i, x in enumerate(leaves)])


def close(x, y, atol=1e-5):
    np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5)


# ---- layers ----


@pytest.mark.parametrize("hidden", [0, 5])
def test_film_is_the_papers(hidden):
    """Perez et al. 2018, eq. 2, by matrices, at every place of a map alike."""
    x, vector = normal(2, 3, 4, 6), normal(2, 7, seed=1)
    params = scattered(Film(hidden), x, vector)
    h = vector
    if hidden:
        h = np.maximum(h @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    last = params["Dense_1" if hidden else "Dense_0"]
    affine = np.asarray(h @ last["kernel"] + last["bias"])
    scale, shift = affine[:, :6], affine[:, 6:]
    expected = np.einsum("bhwc,bc->bhwc", x, 1 + scale) + shift[:, None, None]
    close(Film(hidden).apply({"params": params}, x, vector), expected)
    flat = Film(hidden).apply({"params": params}, x[:, 0, 0], vector)
    close(flat, expected[:, 0, 0])


def test_layers_change_nothing_at_first():
    x, vector = normal(2, 4, 4, 8), normal(2, 5, seed=1)
    encoded = Encoded(vector, normal(2, 3, 5), np.ones((2, 3), bool))
    for layer, told in ((Film(), vector), (Film(4), vector), (CrossAttention(), encoded)):
        found, _ = jax.jit(layer.init_with_output)(KEY, x, told)
        np.testing.assert_array_equal(found, x)


@pytest.fixture(scope="module")
def attending():
    """x (2, 3, 4, 8), what it attends to, 6 tokens of width 5, and parameters of 4 heads."""
    mask = np.arange(6) < np.array([[6], [3]])
    x, encoded = normal(2, 3, 4, 8), Encoded(normal(2, 5), normal(2, 6, 5, seed=1), mask)
    return x, encoded, scattered(CrossAttention(4), x, encoded)


def test_cross_attention_is_torchs(attending):
    torch = pytest.importorskip("torch")
    x, encoded, params = attending
    twin = torch.nn.MultiheadAttention(8, 4, batch_first=True, kdim=5, vdim=5)
    norm = torch.nn.LayerNorm(8, eps=1e-6)
    to = lambda x: torch.tensor(np.asarray(x).T.copy())  # noqa: E731
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(twin, f"{name[0]}_proj_weight").copy_(to(params[name]["kernel"]))
        twin.in_proj_bias.copy_(
            torch.cat([to(params[name]["bias"]) for name in ("query", "key", "value")])
        )
        twin.out_proj.weight.copy_(to(params["out"]["kernel"]))
        twin.out_proj.bias.copy_(to(params["out"]["bias"]))
        norm.weight.copy_(to(params["LayerNorm_0"]["scale"]))
        norm.bias.copy_(to(params["LayerNorm_0"]["bias"]))
        tokens = torch.tensor(encoded.features)
        asks = norm(torch.tensor(x).reshape(2, 12, 8))
        seen = twin(asks, tokens, tokens, key_padding_mask=torch.tensor(~encoded.mask))[0]
    expected = x + seen.numpy().reshape(x.shape)
    close(CrossAttention(4).apply({"params": params}, x, encoded), expected, 1e-4)


def test_cross_attention_sees_no_token_behind_the_mask(attending):
    x, encoded, params = attending
    found = CrossAttention(4).apply({"params": params}, x, encoded)
    changed = np.where(encoded.mask[..., None], encoded.features, 1e4).astype(np.float32)
    again = CrossAttention(4).apply({"params": params}, x, encoded._replace(features=changed))
    np.testing.assert_array_equal(found, again)


def test_cross_attention_without_tokens_sees_the_vector(attending):
    """One token gets all the attention: a linear map of the vector is added everywhere."""
    x, encoded, params = attending
    found = CrossAttention(4).apply({"params": params}, x, Encoded(encoded.vector))
    value = encoded.vector @ params["value"]["kernel"] + params["value"]["bias"]
    added = np.asarray(value @ params["out"]["kernel"] + params["out"]["bias"])
    close(found, x + added[:, None, None], 1e-4)


def test_cross_attention_names_heads_that_do_not_divide():
    x = jnp.zeros((1, 2, 2, 6))
    with pytest.raises(UserError, match="4 heads of attention do not divide 6 channels"):
        CrossAttention(4).init(KEY, x, Encoded(jnp.zeros((1, 3))))


def test_projection_is_an_inner_product():
    x, vector = normal(3, 6), normal(3, 4, seed=1)
    params = scattered(Projection(), x, vector)
    expected = np.einsum("bc,wc,bw->b", x, params["Dense_0"]["kernel"], vector)
    close(Projection().apply({"params": params}, x, vector), expected, 1e-4)


# ---- what a batch says ----

LABEL = np.array([0, 2, 1, 2], np.int32)
TOKENS = np.array([[2, 7, 8, 3, 0], [2, 9, 3, 0, 0], [2, 5, 6, 7, 3], [2, 3, 0, 0, 0]], np.int32)


def token_fields(prefix=""):
    return {f"{prefix}text": TOKENS, f"{prefix}text_mask": TOKENS != 0}


def frozen_fields(features, prefix=""):
    fields = {f"{prefix}text_embedding": normal(4, 6)}
    if features:
        fields |= {f"{prefix}text_features": normal(4, 5, 7), f"{prefix}text_mask": TOKENS != 0}
    return fields


KINDS = {
    "tokens": token_fields(),
    "sentence": frozen_fields(False),
    "sentence and features": frozen_fields(True),
}


def test_of_batch_of_labels_or_nothing():
    batch = {"image": normal(4, 2, 2, 1), "label": LABEL}
    assert of_batch(batch, 3) is LABEL
    assert of_batch(batch, 0) is None  # the run doesn't know them
    assert of_batch({"image": batch["image"]}, 0) is None
    assert of_batch(batch, 0, "wrong_") is None


@pytest.mark.parametrize("prefix", ["", "wrong_"])
def test_of_batch_of_texts(prefix):
    other = {"label": LABEL, **{f"{'' if prefix else 'wrong_'}text": TOKENS[::-1]}}
    found = of_batch({**token_fields(prefix), **other}, 3, prefix)
    assert found.tokens is TOKENS and found.sentence is None
    np.testing.assert_array_equal(found.mask, TOKENS != 0)

    fields = frozen_fields(False, prefix)
    found = of_batch({**fields, "label": LABEL}, 3, prefix)
    assert found.sentence is fields[f"{prefix}text_embedding"]
    assert found.tokens.shape == (4, 0, 6) and found.mask.shape == (4, 0)

    fields = frozen_fields(True, prefix)
    found = of_batch(fields, 0, prefix)
    assert found.tokens is fields[f"{prefix}text_features"]
    assert found.mask is fields[f"{prefix}text_mask"]


def test_nothing_is_the_empty_text_of_the_reader():
    """What a reader of captions makes of "", and the class beyond the last."""
    from aigc_jax.data import text

    reader = text.train(["a red circle", "a star"], 5)
    empty = nothing(of_batch(reader(["a red circle", "a star"]), 0), 0)
    expected = of_batch(reader(["", ""]), 0)
    np.testing.assert_array_equal(empty.tokens, expected.tokens)
    np.testing.assert_array_equal(empty.mask, expected.mask)
    assert empty.tokens.dtype == np.int32 and empty.sentence is None
    np.testing.assert_array_equal(nothing(jnp.asarray(LABEL), 3), [3, 3, 3, 3])
    assert nothing(None, 0) is None


@pytest.mark.parametrize("features", [False, True])
def test_nothing_of_a_frozen_encoder_is_zero(features):
    told = of_batch(frozen_fields(features), 0)
    for part, whole in zip(nothing(told, 0), told, strict=True):
        assert part.shape == whole.shape and part.dtype == whole.dtype and not part.any()


@pytest.mark.parametrize("kind", KINDS)
def test_said_takes_each_example_whole(kind):
    told = of_batch(KINDS[kind], 0)
    keep = np.array([True, False, False, True])
    found, empty = said(told, keep, 0), nothing(told, 0)
    for parts in zip(found, told, empty, strict=True):
        if parts[0] is None:
            continue
        for i, kept in enumerate(keep):
            np.testing.assert_array_equal(parts[0][i], parts[1 if kept else 2][i])


def test_said_of_labels_and_of_nothing():
    keep = np.array([True, False, False, True])
    np.testing.assert_array_equal(said(jnp.asarray(LABEL), keep, 3), [0, 3, 3, 2])
    assert said(None, keep, 0) is None


# ---- grids and pairs ----


def test_for_grid_has_a_row_a_class_or_a_text():
    images = normal(20, 2, 2, 1)
    grid = for_grid({"image": images, "label": np.zeros(20, np.int32)}, 5)
    np.testing.assert_array_equal(grid["label"], np.repeat(np.arange(5), 8))
    np.testing.assert_array_equal(grid["index"], np.arange(40))
    assert len(for_grid({"image": images}, 100)["index"]) == 16 * 8  # rows enough
    plain = for_grid({"image": images}, 0)
    assert len(plain["index"]) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_for_grid_of_texts(kind):
    fields = KINDS[kind]
    batch = {"image": normal(4, 2, 2, 1), "label": LABEL, **fields}
    wrong = {f"wrong_{name}": x for name, x in fields.items()}
    grid = for_grid({**batch, **wrong}, 3, columns=2)
    assert grid.keys() == {"index", *fields}  # 4 rows: there are no more texts
    for name, x in fields.items():
        np.testing.assert_array_equal(grid[name], np.repeat(x, 2, axis=0))


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("each", [1, 2])
def test_for_each_pairs_every_image_with_its_conditions(groups, each):
    """Image (row b, group g) is 10 b + g, its conditions 10 b + k: written out by loops."""
    images = np.array([10 * b + g for b in range(4) for g in range(groups)], np.float32)
    conditions = np.array([10 * b + k for b in range(4) for k in range(each)], np.int32)
    text = Text(conditions[:, None], conditions[:, None] > 0)
    x, found = for_each(jnp.asarray(images)[:, None], jax.tree.map(jnp.asarray, text), groups)
    pairs = [(10 * b + g, 10 * b + k) for b in range(4) for g in range(groups) for k in range(each)]
    np.testing.assert_array_equal(x[:, 0], [image for image, _ in pairs])
    np.testing.assert_array_equal(found.tokens[:, 0], [condition for _, condition in pairs])
    np.testing.assert_array_equal(found.mask[:, 0], [condition > 0 for _, condition in pairs])
    assert found.sentence is None


def test_each_of_counts_an_images_conditions():
    x = np.zeros((8, 4, 4, 3))
    sentence = Text(np.zeros((8, 0, 5)), np.zeros((8, 0), bool), np.zeros((8, 5)))
    assert [each_of(x, None), each_of(x, np.zeros(8)), each_of(x, np.zeros(16))] == [0, 1, 2]
    assert [each_of(x, sentence), each_of(x, np.zeros(8), groups=2)] == [1, 2]


@pytest.mark.parametrize(
    ("condition", "each", "shown", "line"),
    [
        ("projection, auxiliary", 1, ("concat",), ""),
        ("concat,auxiliary", 1, ("concat",), "but concat shows what auxiliary is to tell"),
        ("concat,auxiliary", 1, (), ""),
        ("concat,auxiliary", 0, ("concat",), ""),
        ("auxiliary", 2, ("concat",), "add one of concat, projection"),
        ("auxiliary,projection", 2, ("concat",), ""),
        ("concta", 0, ("concat",), "holds 'concta'. Did you mean 'concat'"),
    ],
)
def test_a_discriminators_ways_go_together(condition, each, shown, line):
    ways = lambda: discriminator_ways(condition, ("concat", "projection"), each, shown)  # noqa: E731
    if line:
        with pytest.raises(UserError, match=line):
            ways()
    else:
        assert ways() == (tuple(condition.replace(" ", "").split(",")) if each else ())
