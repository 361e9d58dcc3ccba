"""The transformer over codes: a PyTorch twin, causality, stepping, and what it draws."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import Text, nothing
from aigc_jax.models.code_transformer import Transformer, choose, draw, dropout

RNG = jax.random.key(0)
GRID, K, CLASSES = (2, 3), 7, 4


READS = dict(num_classes=0, vocabulary=9, text_width=8, text_depth=1)


def some_texts(b=4, length=5):
    """Of 3, 4 or 5 tokens."""
    tokens = np.random.default_rng(2).integers(4, 9, (b, length)).astype(np.int32)
    mask = np.arange(length) < 3 + np.arange(b)[:, None] % 3
    return Text(jnp.asarray(tokens * mask), jnp.asarray(mask))


def make(scale=0.5, num_codes=K, grid=GRID, **fields):
    """A small network with weights large enough that everything matters."""
    fields = dict(width=12, depth=2, heads=3, num_classes=CLASSES) | fields
    model = Transformer(num_codes, grid, **fields)
    told = some_texts(1) if model.vocabulary else None
    variables = model.init(RNG, jnp.zeros((1, *grid), jnp.int32), told, train=False)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda w: jnp.asarray(w + rng.normal(0, scale, w.shape), jnp.float32), variables
    )


def some_codes(b=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, K, (b, *GRID)).astype(np.int32), np.arange(b, dtype=np.int32) % CLASSES


def run(model, variables, codes, label=None):
    return model.apply(variables, codes, label, train=False)


def twin_logits(torch, model, params, codes, label):
    """The same network as torch.nn's layers make it."""
    heads = {
        "self_attn.in_proj": "attention/qkv",
        "self_attn.out_proj": "attention/out",
        "linear1": "expand",
        "linear2": "contract",
        "norm1": "norm1",
        "norm2": "norm2",
    }

    def tensor(x):
        return torch.tensor(np.array(x))

    def linear(p):
        weight = p["kernel"].T if "kernel" in p else p["scale"]
        return {"weight": tensor(weight), "bias": tensor(p["bias"])}

    positions = [(i, j) for i in range(model.grid[0]) for j in range(model.grid[1])]
    place = np.stack(
        [params["row"]["embedding"][i] + params["column"]["embedding"][j] for i, j in positions]
    )
    flat = codes.reshape(len(codes), -1)
    start = np.asarray(params["start"]["embedding"])[label][:, None]
    before = np.asarray(params["code"]["embedding"])[flat[:, :-1]]
    x = tensor(np.concatenate([start, before], 1) + place)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    for i in range(model.depth):
        layer = torch.nn.TransformerEncoderLayer(
            model.width,
            model.heads,
            4 * model.width,
            dropout=0.0,
            activation=functools.partial(torch.nn.functional.gelu, approximate="tanh"),
            batch_first=True,
            norm_first=True,
        )
        weights = {}
        for name, path in heads.items():
            p = functools.reduce(
                lambda tree, key: tree[key], path.split("/"), params[f"blocks_{i}"]
            )
            join = "_" if name.endswith("in_proj") else "."
            weights |= {f"{name}{join}{kind}": w for kind, w in linear(p).items()}
        layer.load_state_dict(weights)
        x = layer(x, src_mask=mask, is_causal=True)
    norm, head = linear(params["norm"]), linear(params["head"])
    x = torch.nn.functional.layer_norm(x, (model.width,), norm["weight"], norm["bias"])
    return torch.nn.functional.linear(x, head["weight"], head["bias"])


def test_pytorch_twin():
    torch = pytest.importorskip("torch")
    model, variables = make()
    codes, label = some_codes()
    logits = run(model, variables, codes, label)
    with torch.no_grad():
        expected = twin_logits(torch, model, variables["params"], codes, label).numpy()
    assert logits.shape == (4, 6, K) and logits.dtype == jnp.float32
    assert expected.std() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


def test_logits_ignore_their_own_and_later_codes_to_the_bit():
    model, variables = make()
    codes, label = some_codes(1)
    apply = jax.jit(functools.partial(run, model, variables))
    logits = apply(codes, label)
    for t in range(6):
        other = codes.copy().reshape(1, -1)
        other[0, t] = (other[0, t] + 1) % K
        changed = apply(other.reshape(codes.shape), label)
        np.testing.assert_array_equal(changed[0, : t + 1], logits[0, : t + 1])
        if t < 5:
            assert (np.abs(changed[0, t + 1 :] - logits[0, t + 1 :]).max(-1) > 1e-4).all()


def test_jacobian_is_causal():
    """Of logits t in the embedding of code s, where every position has a code of its own."""
    model, variables = make()
    codes = np.arange(6, dtype=np.int32).reshape(1, *GRID)

    def outputs(table):
        params = {**variables["params"], "code": {"embedding": table}}
        return run(model, {"params": params}, codes)[0] @ np.arange(1.0, K + 1, dtype=np.float32)

    jacobian = jax.jacobian(outputs)(variables["params"]["code"]["embedding"])
    seen = np.abs(jacobian).max(-1)[:, :6] > 0
    np.testing.assert_array_equal(seen, np.tri(6, k=-1, dtype=bool))


def test_every_position_depends_on_the_label():
    model, variables = make()
    codes, _ = some_codes(1)
    labels = (np.array([0]), np.array([1]), None)
    one, two, none = (run(model, variables, codes, label) for label in labels)
    assert (np.abs(one - two).max(-1) > 1e-4).all() and (np.abs(one - none).max(-1) > 1e-4).all()


def test_every_position_depends_on_every_word():
    model, variables = make(**READS)
    codes, text = some_codes()[0], some_texts()
    logits = run(model, variables, codes, text)
    for word in range(5):
        other = text._replace(
            tokens=text.tokens.at[:, word].set((text.tokens[:, word] - 3) % 5 + 4)
        )
        gaps = np.abs(run(model, variables, codes, other) - logits).max(-1)
        said = np.asarray(text.mask[:, word])
        assert (gaps[said] > 1e-4).all() and not gaps[~said].any()


def test_a_text_is_wanted_where_texts_are_read():
    model, variables = make(**READS)
    for condition in (None, np.zeros(4, np.int32)):
        with pytest.raises(ValueError, match="texts"):
            run(model, variables, some_codes()[0], condition)


def test_no_label_is_the_one_after_the_last():
    model, variables = make()
    codes, _ = some_codes()
    np.testing.assert_array_equal(
        run(model, variables, codes), run(model, variables, codes, np.full(4, CLASSES, np.int32))
    )
    unconditional, variables = make(num_classes=0)
    assert variables["params"]["start"]["embedding"].shape == (1, 12)
    assert run(unconditional, variables, codes).shape == (4, 6, K)


@pytest.mark.parametrize("told", ["label", "text", "nothing"])
def test_stepping_gives_what_teacher_forcing_gives(told):
    model, variables = make(**READS if told == "text" else {})
    codes, label = some_codes()
    condition = {"label": label, "text": some_texts(), "nothing": None}[told]
    whole, flat = run(model, variables, codes, condition), codes.reshape(4, -1)
    step = jax.jit(functools.partial(model.apply, variables, method="step"))
    cache = model.apply(variables, 4, method="empty_cache")
    read = model.apply(variables, condition, 4, method="tell")
    judge = functools.partial(model.apply, variables, method="logits")
    token = np.full((4, 1), 5, np.int32)  # whatever
    for t in range(6):
        x, cache = step(token, jnp.int32(t), cache, read)
        np.testing.assert_allclose(judge(x, token[:, None], 0)[:, 0], whole[:, t], atol=1e-5)
        token = flat[:, t : t + 1]


# ---- squares of codes ----

SQUARES = dict(grid=(4, 6), block=2)


def squares_of(codes):
    """(B, 4, 6) -> (B, 6, 4), by slices."""
    parts = [codes[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for i in range(2) for j in range(3)]
    return np.stack([part.reshape(-1, 4) for part in parts], 1)


def test_squares_come_one_after_another_and_so_do_their_codes():
    """A code depends on those before it, in the order of the squares, and on no others."""
    model, variables = make(**SQUARES)
    codes = np.random.default_rng(3).integers(0, K, (1, 4, 6)).astype(np.int32)
    order = squares_of(np.arange(24).reshape(1, 4, 6)).reshape(-1)  # raster places, as drawn
    apply = jax.jit(functools.partial(run, model, variables))
    logits = apply(codes)
    assert logits.shape == (1, 24, K)
    for t in range(0, 24, 3):
        other = codes.copy().reshape(1, -1)
        other[0, order[t]] = (other[0, order[t]] + 1) % K
        gaps = np.abs(apply(other.reshape(codes.shape)) - logits).max(-1)[0, order]
        assert not gaps[: t + 1].any() and (gaps[t + 1 :] > 1e-4).all()


def test_stepping_through_squares():
    model, variables = make(**SQUARES)
    codes = np.random.default_rng(3).integers(0, K, (4, 4, 6)).astype(np.int32)
    label, squares = np.arange(4) % CLASSES, squares_of(codes)
    whole = squares_of(np.arange(24).reshape(1, 4, 6))[0], run(model, variables, codes, label)
    cache = model.apply(variables, 4, method="empty_cache")
    told = model.apply(variables, label, 4, method="tell")
    before = np.full((4, 4), 5, np.int32)  # whatever
    for t in range(6):
        x, cache = model.apply(variables, before, jnp.int32(t), cache, told, method="step")
        before = squares[:, t]
        for place in range(4):
            known = np.where(np.arange(4) < place, before, 6)[:, None]
            logits = model.apply(variables, x, known, place, method="logits")[:, 0]
            np.testing.assert_allclose(logits, whole[1][:, whole[0][t, place]], atol=1e-5)


def test_draws_of_squares_follow_the_exact_joint():
    model, variables = make(**SMALL | dict(grid=(2, 2), block=2))
    p = probabilities(model, variables, 2, guidance=0.5)
    np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
    assert p_value(counts(model, variables, 2, guidance=0.5), p) > 1e-3


def test_squares_that_do_not_fit():
    with pytest.raises(UserError, match="block is 2: it must divide the sides of the 2x3 codes"):
        make(block=2)


def test_start_is_close_to_uniform():
    model = Transformer(K, GRID, width=12, depth=2, heads=3)
    codes, _ = some_codes()
    logits = run(model, model.init(RNG, codes, train=False), codes)
    p = jax.nn.softmax(logits)
    assert p.min() > 0.7 / K and p.max() < 1.4 / K


def test_parameters():
    model = Transformer(512, (8, 8), width=16, depth=3, heads=2, num_classes=10)
    codes = jnp.zeros((1, 8, 8), jnp.int32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), RNG, codes)
    w = 16
    block = 12 * w * w + 9 * w + 4 * w  # kernels, biases, two norms
    total = 3 * block + (512 + 11 + 8 + 8) * w + 2 * w + 512 * (w + 1)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == total


def test_low_precision():
    model, variables = make(scale=0.1)
    low = model.clone(dtype=jnp.bfloat16)
    codes, label = some_codes()
    logits = run(low, variables, codes, label)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, run(model, variables, codes, label), atol=0.05)
    drawn = draw(low, variables, jax.random.split(RNG, 3), label[:3])
    assert drawn.shape == (3, *GRID) and drawn.dtype == jnp.int32


# ---- dropout ----


def test_dropout_zeroes_a_share_and_keeps_the_mean():
    x, keys = jnp.ones((20, 50, 10)), jax.random.split(RNG, 20)
    y = dropout(x, 0.2, keys)
    np.testing.assert_allclose(np.unique(y), [0, 1.25], rtol=1e-6)
    assert abs((y == 0).mean() - 0.2) < 0.02
    assert len({np.asarray(row).tobytes() for row in y}) == 20  # every example its own
    np.testing.assert_array_equal(dropout(x[3:5], 0.2, keys[3:5]), y[3:5])
    assert dropout(x, 0.2, None) is x and dropout(x, 0.0, keys) is x


def test_dropout_is_for_training():
    model, variables = make(dropout=0.5)
    codes, label = some_codes()
    keys = jax.random.split(RNG, 4)
    without = run(make()[0], variables, codes, label)
    np.testing.assert_array_equal(run(model, variables, codes, label), without)
    applied = functools.partial(model.apply, variables, codes, label, keys=keys)
    np.testing.assert_array_equal(applied(train=False), without)
    assert np.abs(applied(train=True) - without).max() > 0.1
    np.testing.assert_array_equal(applied(train=True), applied(train=True))


# ---- what is drawn ----

SMALL = dict(num_codes=3, grid=(2, 2), depth=1, scale=0.5)
GRIDS = np.array(list(itertools.product(range(3), repeat=4)), np.int32)  # all 81 there are


def probabilities(model, variables, label, temperature=1.0, top_k=3, guidance=0.0):
    """p of each of GRIDS, float64: the product of its codes' probabilities, by teacher forcing."""
    codes = GRIDS.reshape(-1, 2, 2)
    given = np.float64(run(model, variables, codes, np.full(81, label, np.int32)))
    free = np.float64(run(model, variables, codes))
    logits = ((1 + guidance) * given - guidance * free) / temperature
    rank = (-logits).argsort(-1).argsort(-1)
    odds = np.exp(logits) * (rank < top_k)
    p = odds / odds.sum(-1, keepdims=True)
    return np.take_along_axis(p, GRIDS[..., None], -1)[..., 0].prod(-1)


def counts(model, variables, label, n=8000, **knobs):
    keys = jax.random.split(jax.random.key(7), n)
    label = jnp.full(n, label, jnp.int32)
    codes = jax.jit(lambda k, y: draw(model, variables, k, y, **knobs))(keys, label)
    index = np.asarray(codes).reshape(n, 4) @ [27, 9, 3, 1]
    return np.bincount(index, minlength=81)


def p_value(found, p):
    """Of Pearson's test; cells of few expected draws are taken together."""
    few = p * found.sum() < 5
    if few.any():
        found, p = np.append(found[~few], found[few].sum()), np.append(p[~few], p[few].sum())
    keep = p > 0
    return stats.chisquare(found[keep], p[keep] / p.sum() * found.sum()).pvalue


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 1},
        {"guidance": 1.5},
        {"guidance": 0.7, "temperature": 1.3, "top_k": 2},
    ],
    ids=str,
)
def test_draws_follow_the_exact_joint(knobs):
    model, variables = make(**SMALL)
    p = probabilities(model, variables, 2, **knobs)
    np.testing.assert_allclose(p.sum(), 1, atol=1e-6)
    found = counts(model, variables, 2, **knobs)
    assert not found[p == 0].any()
    if knobs.get("top_k") == 1:
        assert found[p.argmax()] == found.sum()
        return
    assert p_value(found, p) > 1e-3
    if knobs:  # and what they follow is another distribution than without the knobs
        assert p_value(found, probabilities(model, variables, 2)) < 1e-6


def test_guided_draws_of_texts_follow_the_exact_joint():
    model, variables = make(**SMALL, **READS)
    codes = GRIDS.reshape(-1, 2, 2)
    text = jax.tree.map(lambda x: x[1:2], some_texts())
    tiled = lambda text, n: jax.tree.map(lambda x: jnp.repeat(x, n, 0), text)  # noqa: E731
    given = np.float64(run(model, variables, codes, tiled(text, 81)))
    free = np.float64(run(model, variables, codes, tiled(nothing(text, 0), 81)))
    odds = np.exp(2.5 * given - 1.5 * free)
    p = odds / odds.sum(-1, keepdims=True)
    p = np.take_along_axis(p, GRIDS[..., None], -1)[..., 0].prod(-1)
    keys = jax.random.split(jax.random.key(7), 8000)
    drawn = jax.jit(lambda k: draw(model, variables, k, tiled(text, 8000), guidance=1.5))(keys)
    found = np.bincount(np.asarray(drawn).reshape(-1, 4) @ [27, 9, 3, 1], minlength=81)
    assert p_value(found, p) > 1e-3


def test_draws_depend_on_their_key_and_label_alone():
    model, variables = make()
    keys, label = jax.random.split(RNG, 6), jnp.arange(6) % CLASSES
    codes = draw(model, variables, keys, label)
    some = np.array([4, 1])
    np.testing.assert_array_equal(draw(model, variables, keys[some], label[some]), codes[some])
    assert len({np.asarray(c).tobytes() for c in codes}) == 6


def test_choose_takes_the_likeliest():
    logits = jnp.array([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 5.0, 5.0]])
    keys = jax.random.split(RNG, 200).reshape(100, 2)
    seen = [jax.vmap(lambda k: choose(k, logits, n))(keys) for n in (0, 1, 2)]  # noqa: B023
    assert [len(np.unique(codes[:, 0])) for codes in seen] == [4, 1, 2]
    assert set(np.unique(seen[2][:, 0])) == {0, 2}
    assert len(np.unique(seen[2][:, 1])) == 2 and 0 not in seen[2][:, 1]  # two of three equals
    assert seen[2].dtype == jnp.int32
