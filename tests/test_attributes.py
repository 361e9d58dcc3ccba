"""Shares of what captions ask, and their likelihood: brute force over every matching."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from reading_helpers import CUTS, M, packed, reading_of

from aigc_jax import scores, suite
from aigc_jax.data import shapes
from aigc_jax.errors import UserError
from aigc_jax.metrics import attributes
from aigc_jax.metrics.attributes import CLASSES, Reading
from aigc_jax.metrics.statistics import from_features
from aigc_jax.scoring import Seen

N = 300
FIELDS = ("scene", "background", "asked")


def fields(split="test", rows=N):
    from aigc_jax.data.dataset import Request

    data = shapes.read_shapes(Request("3,textured", split, None, 32, None, 0))
    return {name: data.fields[name].function(np.arange(rows)) for name in FIELDS}


@pytest.fixture(scope="module")
def known():
    found = fields()
    return found | {"reading": reading_of(found["scene"], found["background"],
                                          np.random.default_rng(0))}  # fmt: skip


def test_packed_and_back(known):
    flat = packed(known["reading"])
    assert flat.shape == (N, M * (3 + sum(CLASSES)) + len(shapes.BACKGROUNDS))
    for a, b in zip(Reading.unpacked(flat), known["reading"], strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="no reading"):
        Reading.unpacked(flat[:, 1:])


def test_a_right_reading_is_right_in_all(known):
    """Captions name objects in an order of their own: the matching must find it."""
    found = attributes.shares(packed(known["reading"]), known["asked"])
    assert found == dict.fromkeys(attributes.NAMES, 1.0)


def test_the_whole_scene_is_asked(known):
    asked = attributes.asked_of(jnp.asarray(known["scene"]), jnp.asarray(known["background"]))
    found = attributes.shares(packed(known["reading"]), np.asarray(asked))
    assert found == dict.fromkeys((n for n in attributes.NAMES if n != "relation"), 1.0)


def test_captions_of_other_pictures_are_as_right_as_chance(known):
    found = attributes.shares(packed(known["reading"]), np.roll(known["asked"], 1, 0))
    assert found["all"] < 0.03
    assert 0.15 < found["shape"] < 0.6 and 0.15 < found["colour"] < 0.6
    assert found["background"] == pytest.approx(1 / 3, abs=0.15)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("count", lambda r, i: r.present.__setitem__((i, r.present[i].argmin()), 3.0)),
        ("background", lambda r, i: r.background.__setitem__(i, np.roll(r.background[i], 1))),
    ],
)
def test_what_is_wrong_shows_where_it_is_asked_alone(known, name, change):
    reading = Reading(*(x.copy() for x in known["reading"]))
    for i in range(N):
        change(reading, i)
    found = attributes.shares(packed(reading), known["asked"])
    for other in attributes.NAMES:
        if other not in (name, "all"):
            assert found[other] == 1, other
    assert found[name] < 0.5 and found["all"] < 1


def test_what_is_asked_of_an_object_that_is_not_there_is_wrong():
    found = fields(rows=50)
    reading = reading_of(found["scene"], found["background"], np.random.default_rng(0))
    reading = reading._replace(present=np.full_like(reading.present, -6))
    shares = attributes.shares(packed(reading), found["asked"])
    background = shares.pop("background")
    assert background == 1 and set(shares.values()) == {0.0}


def test_relations_are_as_the_source_means_them(known):
    """Objects exchanged in place: whether a relation still holds, by the source's own rule."""
    rng = np.random.default_rng(1)
    scene = known["scene"].copy()
    scene[..., 5:7] = rng.uniform(0.15, 0.85, (N, 3, 2)) * scene[..., :1]
    reading = reading_of(scene, known["background"], rng)
    told = known["asked"].copy()
    told[:, [2, 3, 7, 8, 12, 13, 15]] = -1
    right, asked = attributes.judge(Reading(*map(jnp.asarray, reading)), jnp.asarray(told))
    right, asked = (np.asarray(x["relation"]) for x in (right, asked))
    want = shapes.holds(told, scene)
    np.testing.assert_array_equal((right | ~asked).all(1), want)
    assert 0.2 < want.mean() < 0.8


def brute_likelihood(reading, i, asked):
    """The best over all ways to match, in float64 and plain loops."""
    log = lambda x: max(float(x), attributes._LEAST)  # noqa: E731
    sigmoid = lambda x: -np.log1p(np.exp(-np.float64(x)))  # noqa: E731
    objects = [o for o in asked[:15].reshape(3, 5) if (o >= 0).any()]
    behind = log(reading.background[i, asked[15]]) if asked[15] >= 0 else 0.0
    best = -np.inf
    for way in itertools.permutations(range(M), len(objects)):
        total = behind
        for m in range(M):
            sign = 1 if m in way else -1
            total += log(sigmoid(sign * reading.present[i, m]))
        for m, wanted in zip(way, objects, strict=True):
            for a in range(4):
                if wanted[a] >= 0:
                    total += log(reading.classes[i, m, CUTS[a] + wanted[a]])
        for m, n, wanted in zip(way, way[1:], objects, strict=False):
            x, y = reading.centre[i, n] - reading.centre[i, m]
            lead = [y - abs(x), -y - abs(x), x - abs(y), -x - abs(y)]
            if wanted[4] >= 0:
                total += log(sigmoid(lead[wanted[4]] / attributes._SOFTNESS))
        best = max(best, total)
    return best


def test_likelihood_is_the_best_matchings(known):
    captions = np.stack([known["asked"][:20], np.roll(known["asked"][:20], 1, 0)], 1)
    part = Reading(*(jnp.asarray(x[:20]) for x in known["reading"]))
    found = attributes.log_likelihood(part, jnp.asarray(captions))
    want = [[brute_likelihood(known["reading"], i, c) for c in captions[i]] for i in range(20)]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-3)


def seen_of(known, labels=None):
    flat = packed(known["reading"])
    return Seen("x", from_features(flat[:, :4]), flat[:, :4], readings=flat, asked=labels)


def test_records_of_both_sides(known):
    """Real ones beside the samples', as the table shows them; higher is better."""
    real = seen_of(known, known["asked"])
    fake = seen_of(known, np.roll(known["asked"], 1, 0))
    names = ("attributes", "r_precision")
    found = suite.score(names, real, fake, suite.Settings())
    assert found["attributes"]["real"]["shape"] == 1 == found["r_precision"]["real"]
    columns = scores.flat(found)
    want = {"r_precision", *(f"attributes_{name}" for name in attributes.NAMES)}
    assert columns.keys() == want
    lines = scores.table(found).splitlines()
    assert len(lines) == len(want) and all("(real images: 1)" in line for line in lines)
    for column in want:
        assert scores._badness(column, 0.9) < scores._badness(column, 0.8)


def test_without_captions_there_is_nothing_to_ask(known):
    real, fake = seen_of(known, known["asked"]), seen_of(known)
    for sides in ((real, fake), (fake, real)):
        with pytest.raises(UserError, match="x has no captions of shapes"):
            suite.check_sides(["attributes"], *sides)
    with pytest.raises(UserError, match="give --real"):
        suite.check_names(["r_precision"], has_real=False)
