"""R-precision: 1 of what is read well, 1 in a hundred of what says nothing; fair other captions."""

import jax.numpy as jnp
import numpy as np
import pytest
from reading_helpers import packed, reading_of

from aigc_jax.data import shapes
from aigc_jax.data.dataset import Request
from aigc_jax.errors import UserError
from aigc_jax.metrics import retrieval
from aigc_jax.metrics.attributes import CLASSES, Reading

N = 400


@pytest.fixture(scope="module")
def known():
    data = shapes.read_shapes(Request("3", "test", None, 32, None, 0))
    return {k: data.fields[k].function(np.arange(N)) for k in ("scene", "background", "asked")}


def test_what_is_read_well_is_found(known):
    reading = reading_of(known["scene"], known["background"], np.random.default_rng(0))
    found = retrieval.r_precision(packed(reading), known["asked"])
    assert found == (1.0, 0.0, 10, 100)


def test_what_says_nothing_is_found_by_chance(known):
    even = [np.full(n, -np.log(n)) for n in CLASSES]
    zeros = Reading(
        np.zeros((N, 4)), np.full((N, 4, 2), 0.5), np.tile(np.concatenate(even), (N, 4, 1)),
        np.full((N, 3), -np.log(3.0)),
    )  # fmt: skip
    shuffled = reading_of(known["scene"], known["background"], np.random.default_rng(0))
    shuffled = Reading(*(np.roll(x, 1, 0) for x in shuffled))
    assert retrieval.r_precision(packed(shuffled), known["asked"]).value < 0.05
    flat = packed(Reading(*(x.astype(np.float32) for x in zeros)))
    assert retrieval.r_precision(flat, known["asked"]).value < 0.1


def test_other_captions_are_false(known):
    """Of a scene of which a caption is true, no caption drawn for it is."""
    rows = retrieval.contradicting(known["asked"], 50)
    assert rows.shape == (N, 50)
    for k in range(50):
        asked = known["asked"][rows[:, k]]
        same_count = (asked[:, :15:5] >= 0).sum(1) == (known["scene"][..., 0]).sum(1)
        true = shapes.holds(asked, known["scene"], known["background"]) & same_count
        assert not true.any()
    assert all(len(set(row)) == 50 for row in rows)
    np.testing.assert_array_equal(rows, retrieval.contradicting(known["asked"], 50))


def caption(text):
    return shapes.describe(text)


@pytest.mark.parametrize(
    ("a", "b", "agrees"),
    [
        ("a red circle above a blue square", "a blue square below a red circle", True),
        ("a red circle above a blue square", "a blue square above a red circle", False),
        ("a red circle above a blue square", "a small red circle above a blue square", True),
        ("a large red circle above a blue square", "a small red circle above a blue square", False),
        ("a red circle above a blue square", "a red square above a blue circle", False),
        ("a red circle", "a red circle above a blue square", False),
    ],
)
def test_which_captions_agree(a, b, agrees):
    assert retrieval.agree(caption(a), caption(b)[None])[0] == agrees
    assert retrieval.agree(caption(b), caption(a)[None])[0] == agrees


def test_too_few_captions(known):
    same = np.repeat(known["asked"][:1], 5, 0)
    reading = reading_of(known["scene"][:5], known["background"][:5], np.random.default_rng(0))
    with pytest.raises(UserError, match="of 5 captions"):
        retrieval.r_precision(packed(reading), same)


def test_few_captions_are_all_used(known):
    found = retrieval.contradicting(known["asked"][:20], 99)
    assert 0 < found.shape[1] < 20
    assert jnp.issubdtype(found.dtype, jnp.integer)
