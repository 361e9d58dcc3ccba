"""The grammar of operations: what is read, what is refused and how, and what ranges draw."""

import numpy as np
import pytest
import scipy.stats

from aigc_jax.data import tensorflow
from aigc_jax.errors import UserError
from aigc_jax.operations import Kinds, Operation, Parameter, Range, fold

KINDS = Kinds("trick")


@KINDS.add(Parameter("angle", -180, 180))
def rotate(tf, subject, seed, angle):
    return subject + angle


@KINDS.add()
def flip(tf, subject, seed):
    return -subject


@KINDS.add(Parameter("times", 1, 6, Range(2, 2), whole=True), Parameter("share", 0, 1, Range(0, 1)))
def cut(tf, subject, seed, times, share):
    return subject + times + 100 * share


def drawn(text, count=4000):
    """What an operation makes of 0, by so many seeds."""
    tf = tensorflow()
    (operation,) = KINDS.parse(text)
    return by_seeds(tf, lambda seed: KINDS.run(tf, operation, tf.constant(0.0), seed), count)


def by_seeds(tf, function, count):
    seeds = tf.stack([tf.range(count), tf.fill([count], 7)], 1)
    compiled = tf.function(lambda: tf.map_fn(function, seeds, tf.float32), autograph=False)
    return compiled.get_concrete_function()().numpy()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flip", [Operation("flip")]),
        ("flip()", [Operation("flip")]),
        ("rotate(15)", [Operation("rotate", (Range(15, 15),))]),
        (" rotate( -1.5 .. 1e1 ) , flip", [Operation("rotate", (Range(-1.5, 10),)),
                                           Operation("flip")]),
        ("rotate(.5..1.5)", [Operation("rotate", (Range(0.5, 1.5),))]),
        ("rotate(1...5e1)", [Operation("rotate", (Range(1, 5),))]),
        ("cut", [Operation("cut", (Range(2, 2), Range(0, 1)))]),
        ("cut(3)", [Operation("cut", (Range(3, 3), Range(0, 1)))]),
        ("flip,cut(3..4,.5),flip", [Operation("flip"),
                                    Operation("cut", (Range(3, 4), Range(0.5, 0.5))),
                                    Operation("flip")]),
    ],
)  # fmt: skip
def test_lists(text, found):
    assert KINDS.parse(text) == tuple(found)
    assert KINDS.parse(",".join(map(str, found))) == tuple(found)


def test_written_as_it_is_read():
    assert str(KINDS.parse("rotate( -1.50 .. 1e1 )")[0]) == "rotate(-1.5..10)"
    assert str(KINDS.parse("cut")[0]) == "cut(2,0..1)"
    assert str(KINDS.parse("flip()")[0]) == "flip"


def test_alternatives():
    assert KINDS.parse("flip|cut(1,0..1)", "|") == KINDS.parse("flip,cut(1,0..1)")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rotat(3)", "unknown trick 'rotat'. Did you mean 'rotate'?"),
        ("zzz", "unknown trick 'zzz'. Known: cut, flip, rotate."),
        ("rotate(270)", "'rotate(270)': angle is a number from -180 to 180, not 270. "
                        "Did you mean 180?"),
        ("rotate(0..1e400)", "'rotate(0..1e400)': angle is a number from -180 to 180, not inf. "
                             "Did you mean 180?"),
        ("cut(2.4)", "'cut(2.4)': times is a whole number from 1 to 6, not 2.4. Did you mean 2?"),
        ("cut(1..9e999)", "'cut(1..9e999)': times is a whole number from 1 to 6, not inf. "
                          "Did you mean 6?"),
        ("rotate(5..-5)", "'rotate(5..-5)': the range 5..-5 runs down. Did you mean -5..5?"),
        ("rotate", "'rotate': rotate takes 1 argument (angle), not 0."),
        ("flip(1)", "'flip(1)': flip takes no arguments, not 1."),
        ("cut(1,1,1)", "'cut(1,1,1)': cut takes 2 arguments (times=2, share=0..1), not 3."),
        ("rotate(nan)", "'rotate(nan)': 'nan' is no number, nor a range a..b of two."),
        ("rotate(1..2..3)", "'rotate(1..2..3)': '1..2..3' is no number, nor a range a..b of two."),
        ("rotate(1,)", "'rotate(1,)': '' is no number, nor a range a..b of two."),
    ],
)  # fmt: skip
def test_what_is_refused(text, line):
    with pytest.raises(UserError) as error:
        KINDS.parse(text)
    assert str(error.value) == line


@pytest.mark.parametrize("text", ["", "flip,", "rotate(3", "rotate 3", "rotate(3))", "flip|cut"])
def test_what_cannot_be_read(text):
    with pytest.raises(UserError, match=r"is no trick: write NAME or NAME\(NUMBER,...\)"):
        KINDS.parse(text)


def test_a_number_is_passed_on():
    np.testing.assert_array_equal(drawn("rotate(15)", 3), 15)


def test_ranges_are_drawn_evenly():
    assert scipy.stats.kstest(drawn("rotate(-20..60)"), "uniform", (-20, 80)).pvalue > 0.01


def test_whole_ranges_draw_both_ends_as_often_as_the_rest():
    numbers, counts = np.unique(drawn("cut(2..5,0)"), return_counts=True)
    np.testing.assert_array_equal(numbers, [2, 3, 4, 5])
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_arguments_are_drawn_by_themselves():
    times, share = np.divmod(drawn("cut(1..6,0..0.0099)"), 1)
    assert abs(np.corrcoef(times, share)[0, 1]) < 0.05


def test_one_of_several_is_as_likely_as_the_others():
    tf = tensorflow()
    kinds = KINDS.parse("rotate(1),rotate(2),flip")
    found = by_seeds(tf, lambda seed: KINDS.run_one(tf, kinds, tf.constant(5.0), seed), 3000)
    numbers, counts = np.unique(found, return_counts=True)
    np.testing.assert_array_equal(numbers, [-5, 6, 7])
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_seeds_of_numbers_differ():
    tf = tensorflow()
    seeds = {tuple(fold(tf, tf.constant([3, 4]), number).numpy()) for number in range(50)}
    assert len(seeds) == 50
