"""Augmentations: against PIL, SciPy, scikit-image and NumPy, and JAX's against TensorFlow's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from aigc_jax.augment import arrays, augment, augmented, chain, parse
from aigc_jax.augment.kinds import KINDS
from aigc_jax.augment.mixing import mixed
from aigc_jax.errors import UserError

RNG = jax.random.key(0)


def photo(size=24, channels=3, seed=0):
    """(H, W, C) uint8, smooth."""
    noise = np.random.default_rng(seed).normal(size=(size, size, channels))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0), mode="wrap")
    return np.uint8(np.clip(128 + 60 * smooth / smooth.std(), 0, 255))


def floats(images):
    return jnp.asarray(np.float32(images) / 127.5 - 1)


def levels(images):
    return np.round((np.asarray(images) + 1) * 127.5)


def run(text, images, key=RNG, **more):
    """Images (B, H, W, C) uint8 through a chain, as grey levels."""
    fields = {"image": floats(images), **more}
    made = jax.jit(functools.partial(augment, parse(text)))(
        fields, jax.random.split(key, len(images))
    )
    return levels(made["image"]), made


def told(text, *u):
    """The one step of a chain and the numbers of one image that draws `u` (after the ranges')."""
    [step] = parse(text).steps
    ranges = sum(len(op.args) for _, op in (*step.places, *step.colours))
    return step, jnp.array([[0.5] * ranges + list(u)], jnp.float32)


def placed(text, image, *u):
    """One image whose own numbers are `u`, as grey levels."""
    step, u = told(text, *u)
    matrices = chain.places(jnp, step, u, image.shape[:2])
    return levels(arrays.warped(floats(image)[None], matrices))[0]


def coloured(text, image, *u):
    step, u = told(text, *u)
    return np.clip(levels(arrays.recoloured(step, floats(image)[None], u)), 0, 255)[0]


# ---- places ----


def test_mirrors():
    images = np.stack([photo(seed=i) for i in range(3)])
    np.testing.assert_array_equal(run("flip(1)", images)[0], images[:, :, ::-1])
    np.testing.assert_array_equal(run("vflip(1)", images)[0], images[:, ::-1])
    np.testing.assert_array_equal(run("flip(0)", images)[0], images)
    heads = run("flip", np.repeat(images[:1], 400, 0))[0]
    share = (heads == images[0, :, ::-1]).all((1, 2, 3)).mean()
    assert 0.42 < share < 0.58


def test_turns_are_exact_and_even():
    image = photo()
    turned = run("turn", np.repeat(image[None], 400, 0))[0]
    counts = [(turned == np.rot90(image, k)).all((1, 2, 3)).sum() for k in range(4)]
    assert sum(counts) == 400 and min(counts) > 70


def test_a_quarter_by_angle_is_numpys():
    np.testing.assert_allclose(placed("rotate(90)", photo(), 1.0), np.rot90(photo()), atol=1)


@pytest.mark.parametrize("angle", [15.0, -37.0])
def test_rotation_is_pils(angle):
    image, most = photo(48), 45.0
    ours = placed(f"rotate({most})", image, (angle / most + 1) / 2)
    theirs = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))
    inside = np.asarray(
        Image.fromarray(np.full((48, 48), 255, np.uint8)).rotate(angle, Image.Resampling.NEAREST)
    )
    inside = ndimage.binary_erosion(inside > 0, iterations=2)
    assert inside.sum() > 1000
    assert np.abs(ours - theirs)[inside].max() <= 1


def test_an_oblong_image_is_turned_as_it_is():
    image = photo(48)[8:38]
    ours = placed("rotate(90)", image, 0.7)
    theirs = np.asarray(Image.fromarray(image).rotate(36, Image.Resampling.BILINEAR))
    inside = np.full((30, 48), 255, np.uint8)
    inside = np.asarray(Image.fromarray(inside).rotate(36, Image.Resampling.NEAREST)) > 0
    inside = ndimage.binary_erosion(inside, iterations=2)
    assert inside.sum() > 400 and np.abs(ours - theirs)[inside].max() <= 1


def test_a_crop_is_scikit_images():
    image = photo(32)
    ours = placed("crop(0.5)", image, 0.2, 0.9, 0.3)
    side = 0.5 + 0.2 * 0.5
    left, top = (16 * (1 + (2 * u - 1) * (1 - side) - side) for u in (0.9, 0.3))
    to = np.array([[side, 0, left + side / 2 - 0.5], [0, side, top + side / 2 - 0.5], [0, 0, 1]])
    transform = pytest.importorskip("skimage.transform")
    theirs = transform.warp(
        np.float64(image), transform.AffineTransform(to), order=1, mode="symmetric"
    )
    assert np.abs(ours - theirs).max() <= 1


def test_translation_is_by_whole_pixels():
    image = photo(20)
    for u, pixels in ((0.0, -5), (0.5, 0), (1.0, 5), (0.63, 1)):
        padded = np.pad(image, ((0, 0), (6, 6), (0, 0)), mode="symmetric")
        expected = padded[:, 6 + pixels : 26 + pixels]
        np.testing.assert_array_equal(placed("translate(0.25)", image, u, 0.5), expected)


def test_zoom_and_stretch_at_their_ends():
    image = photo(40)
    middle = placed("zoom(1)", image, 1.0)  # twice as large
    transform = pytest.importorskip("skimage.transform")
    expected = transform.resize(image[10:30, 10:30].astype(float), (40, 40), order=1)
    assert np.abs(middle - expected)[2:-2, 2:-2].max() <= 1
    step, u = told("stretch(0.5)", 1.0)
    matrix = np.diag(chain.places(jnp, step, u, (40, 40))[0])
    np.testing.assert_allclose(matrix[:2], [1.5**0.5, 1.5**-0.5], rtol=1e-6)


def test_shear_is_of_its_angles():
    step, u = told("shear(30)", 1.0, 0.25)
    x, y = np.tan(np.radians([30, -15]))
    expected = np.array([[1, 0, 0], [y, 1, 0], [0, 0, 1]]) @ [[1, x, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(chain.places(jnp, step, u, (9, 9))[0], expected, atol=1e-6)


def test_perspective_moves_the_corners():
    own = np.random.default_rng(0).uniform(size=8)
    step, u = told("perspective(0.2)", *own)
    matrix = np.asarray(chain.places(jnp, step, u, (9, 9))[0], np.float64)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    moved = corners + 2 * 0.2 * (2 * own.reshape(4, 2) - 1)
    found = np.c_[corners, np.ones(4)] @ matrix.T
    np.testing.assert_allclose(found[:, :2] / found[:, 2:], moved, atol=1e-5)


def test_maps_move_with_their_image():
    """And take no value that they had not."""
    image = np.repeat(photo(32)[None], 16, 0)
    segments = jnp.asarray((image[..., 0] // 64).astype(np.int32))
    told = {"segments": segments, "mask": (segments == 1)[..., None].astype(jnp.float32)}
    text = "rotate(40),crop(0.6),color(0.4),elastic(2),cutout(0.3),noise(9)"
    _, made = run(text, image, **told)
    assert made["segments"].dtype == jnp.int32 and set(np.unique(made["segments"])) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(made["mask"][..., 0], made["segments"] == 1)
    moved, made = run("rotate(40),elastic(2)", image, **told)
    edges = ndimage.gaussian_filter(np.float64(made["segments"]), (0, 1, 1))
    flat = np.abs(edges - np.round(edges)) < 0.05  # well inside a region
    assert flat.mean() > 0.15
    assert (np.abs(moved[..., 0] // 64 - made["segments"])[flat] < 1).mean() > 0.99


def test_both_halves_of_a_pair_are_moved_alike():
    image = np.stack([photo(seed=i) for i in range(4)])
    pair = np.concatenate([image, image], -1)
    made = run("perspective(0.1),hue(30),contrast(0.3),saturation(0.5)", pair)[0]
    np.testing.assert_array_equal(made[..., :3], made[..., 3:])
    assert np.abs(made[..., :3] - image).max() > 20


# ---- colours ----


@pytest.mark.parametrize(
    "name, enhance, factor",
    [
        ("brightness", ImageEnhance.Brightness, 0.7),
        ("brightness", ImageEnhance.Brightness, 1.3),
        ("contrast", ImageEnhance.Contrast, 0.6),
        ("contrast", ImageEnhance.Contrast, 1.4),
        ("saturation", ImageEnhance.Color, 0.5),
        ("saturation", ImageEnhance.Color, 1.5),
    ],
)
def test_colours_are_pils(name, enhance, factor):
    image = photo()
    ours = coloured(f"{name}(0.5)", image, factor)  # u: 1 - 0.5 + u
    ours = coloured(f"{name}(0.5)", image, factor - 0.5)
    theirs = np.asarray(enhance(Image.fromarray(image)).enhance(factor), np.float64)
    assert np.abs(ours - theirs).max() <= 1.5  # PIL rounds the luma first


def test_grey_and_negative_are_pils():
    image = photo()
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float64)[..., None]
    assert np.abs(coloured("grey(1)", image, 0.5) - grey).max() <= 1
    negative = np.asarray(ImageOps.invert(Image.fromarray(image)))
    np.testing.assert_array_equal(coloured("negative(1)", image, 0.5), negative)


def test_hue_turns_about_grey():
    colours = np.uint8([[[255, 0, 0], [0, 255, 0], [90, 90, 90]]])
    third = coloured("hue(120)", colours.reshape(1, 3, 3), 1.0)[0]
    np.testing.assert_allclose(third, [[0, 255, 0], [0, 0, 255], [90, 90, 90]], atol=1)


def test_color_is_its_three_parts():
    image = np.uint8(photo() // 2 + 64)  # nothing is clipped
    whole = coloured("color(0.3)", image, 0.9, 0.2, 0.6)
    parts = coloured("saturation(0.3),brightness(0.3),contrast(0.3)", image, 0)
    step = parse("saturation(0.3),brightness(0.3),contrast(0.3)").steps[0]
    u = jnp.array([[0.5, 0.6, 0.5, 0.9, 0.5, 0.2]])
    parts = levels(arrays.recoloured(step, floats(image)[None], u))[0]
    np.testing.assert_allclose(whole, parts, atol=1)


def test_grey_images_keep_their_luma():
    """What is done to one of three equal channels, the luma kept."""
    grey = photo(channels=1)
    for text, u in (("color(0.4)", (0.8, 0.1, 0.7)), ("hue(90)", (0.9,)), ("negative", (0.1,))):
        of_three = coloured(text, np.repeat(grey, 3, -1), *u) @ [0.299, 0.587, 0.114]
        np.testing.assert_allclose(coloured(text, grey, *u)[..., 0], of_three, atol=1)


def test_a_chain_of_colours_is_one_after_another():
    images = np.uint8(np.stack([photo(seed=i) for i in range(8)]) // 2 + 64)
    both, text = parse("contrast(0.3),hue(40),brightness(0.2)"), None
    u = jax.random.uniform(RNG, (8, both.draws))
    whole = arrays.recoloured(both.steps[0], floats(images), u)
    by_turns, first = floats(images), 0
    for text in ("contrast(0.3)", "hue(40)", "brightness(0.2)"):
        [step] = parse(text).steps
        by_turns = arrays.recoloured(step, by_turns, u[:, first : first + 2])
        first += 2
    np.testing.assert_allclose(whole, by_turns, atol=1e-5)


# ---- pixels ----


def test_noise_has_its_deviation():
    flat = np.full((64, 16, 16, 3), 128, np.uint8)
    made = run("noise(20)", flat)[0] - 128
    assert abs(made.std() - 20) < 0.5 and abs(made.mean()) < 0.5
    varied = (run("noise(0..40)", flat)[0] - 128).std((1, 2, 3))
    assert varied.min() < 8 and varied.max() > 32


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_blur_is_scipys(sigma):
    image = photo(32)[None]
    ours = run(f"blur({sigma})", image)[0][0]
    theirs = ndimage.gaussian_filter(np.float64(image[0]), (sigma, sigma, 0), mode="reflect")
    assert np.abs(ours - theirs).max() <= 1
    np.testing.assert_array_equal(run("blur(0)", image)[0], image)


def test_cutout_is_a_square():
    white = np.full((200, 20, 20, 1), 255, np.uint8)
    holes = run("cutout(0.5)", white)[0][..., 0] != 255
    areas = holes.sum((1, 2))
    assert areas.max() == 100 and areas.min() >= 25  # the middle lies inside
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    np.testing.assert_array_equal(areas, rows * columns)


def test_elastic_moves_by_its_strength():
    """Seen on a ramp, which gives each place's shift."""
    ramp = np.repeat(np.arange(64, dtype=np.float32)[None, None, :, None], 64, 1) / 64
    fields = {"image": jnp.asarray(np.repeat(ramp, 32, 0))}
    made = augment(parse("elastic(1.5,3)"), fields, jax.random.split(RNG, 32))["image"]
    shift = 64 * (made - ramp)[:, 16:-16, 16:-16, 0]
    assert abs(shift.std() - 1.5) < 0.15
    assert np.abs(np.diff(shift, axis=2)).mean() < 0.6 * shift.std()  # and is smooth


# ---- all of them ----

EVERY = [
    "flip", "vflip", "turn", "rotate(30)", "crop(0.6)", "zoom(0.3)", "stretch(0.3)",
    "translate(0.2)", "shear(15)", "perspective(0.1)", "brightness(0.3)", "contrast(0.3)",
    "saturation(0.5)", "hue(40)", "color(0.2)", "grey", "negative", "noise(10)", "blur(0..2)",
    "cutout(0.4)", "elastic(1)", "same", "randaugment(2,6)",
]  # fmt: skip


def test_every_one_is_tested():
    assert {text.partition("(")[0] for text in EVERY} == set(KINDS) - {"mixup", "cutmix"}


def test_randaugment_takes_each_as_often():
    """At strength 10 every one of nine leaves marks of its own."""
    image = photo(24, seed=3)
    made = run("randaugment(1,10)", np.repeat(image[None], 900, 0))[0]
    variants, counts = np.unique(made.reshape(900, -1), axis=0, return_counts=True)
    # Nothing once, and eight others either way.
    assert len(variants) == 17
    nothing = (variants == image.reshape(-1)).all(1)
    assert 70 < counts[nothing].sum() < 130
    assert counts[~nothing].min() > 25 and counts[~nothing].max() < 80
    turned = [placed(f"rotate({angle})", image, u) for angle in (30,) for u in (0.0, 1 - 1e-7)]
    for each in turned:
        assert np.abs(variants - each.reshape(-1)).max(1).min() <= 1
    brighter = np.clip(image * 1.9, 0, 255).reshape(-1)
    assert np.abs(variants - brighter).max(1).min() <= 1
    twice = run("randaugment(2,10)", np.repeat(image[None], 400, 0))[0]
    assert len(np.unique(twice.reshape(400, -1), axis=0)) > 60


@pytest.mark.parametrize("channels", [1, 3])
def test_an_example_depends_on_its_own_key(channels):
    images = np.stack([photo(16, channels, seed=i) for i in range(6)])
    function = jax.jit(functools.partial(augment, parse(",".join(EVERY))))
    keys = jax.random.split(RNG, 6)
    whole = function({"image": floats(images)}, keys)["image"]
    some = np.array([4, 1])
    part = augment(parse(",".join(EVERY)), {"image": floats(images[some])}, keys[some])["image"]
    assert whole.shape == images.shape and np.abs(whole).max() <= 1
    np.testing.assert_allclose(part, whole[some], atol=2e-5)


@pytest.mark.parametrize("text", ["rotate(30),crop(0.7),perspective(0.1)", "color(0.3),hue(20)",
                                  "blur(1),cutout(0.3),elastic(1)"])  # fmt: skip
def test_gradients(text):
    """Each is linear in the image but for the contrast's mean: against differences, in float64."""
    image = floats(photo(8, 3)[None]) * 0.4
    weights = jax.random.normal(RNG, image.shape)

    def f(x):
        return (augment(parse(text), {"image": x}, RNG[None])["image"] * weights).sum()

    direction = jax.random.normal(jax.random.key(1), image.shape)
    slope = (jax.grad(f)(image) * direction).sum()
    step = 1e-2
    measured = (f(image + step * direction) - f(image - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, measured, rtol=2e-3)


def test_nothing():
    images = photo()[None]
    assert parse("").steps == () and parse(" ").draws == 0
    np.testing.assert_array_equal(run("", images)[0], images)
    np.testing.assert_array_equal(run("same", images)[0], images)


def test_steps_are_few():
    steps = parse("flip,color(0.1),rotate(5),hue(9),noise(3),crop(0.9)").steps
    names = [[op.name for _, op in (*s.places, *s.colours)] or s.pixels[1].name for s in steps]
    assert names == [["flip", "rotate", "color", "hue"], "noise", ["crop"]]
    assert not parse("color(0.1),noise(3)").moves
    assert parse("flip").moves and parse("elastic(1)").moves


@pytest.mark.parametrize(
    "text, line",
    [
        ("rotat(15)", "unknown augmentation 'rotat'. Did you mean 'rotate'"),
        ("rotate(200)", "degrees is a number from 0 to 180, not 200. Did you mean 180"),
        ("crop(0)", r"share is a number from 0.05 to 1, not 0. Did you mean 0.05"),
        ("flip(1,2)", "flip takes 1 argument"),
        ("color", "color takes 1 argument"),
        ("rotate 15", "is no augmentation"),
        ("randaugment(1..2,5)", "n can't be a range. Did you mean 2"),
        ("flip,mixup(0.2)", "'mixup' mixes the images of a batch and their labels: it is for"),
    ],
)
def test_mistakes(text, line):
    with pytest.raises(UserError, match=line):
        parse(text)


# ---- in tf.data ----

tf_only = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("tensorflow") is None, reason="no TensorFlow"
)


@tf_only
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_twins(channels, monkeypatch):
    """TensorFlow's images are JAX's where both draw the same numbers."""
    from aigc_jax.data import augment as twin

    text = ",".join(x for x in EVERY if x[:5] not in ("noise", "blur(", "elast"))
    chain_, keys = parse(text), jax.random.split(RNG, 8)
    u = np.array(jax.vmap(lambda key: jax.random.uniform(key, (chain_.draws,)))(keys))
    monkeypatch.setattr(twin, "uniform", lambda tf, seeds, count: tf.constant(u[:, :count]))
    images = np.stack([photo(20, channels, seed=i) for i in range(8)])
    segments = (images[..., 0] // 64).astype(np.int32)
    fields = {"image": np.float32(floats(images)), "segments": segments}
    theirs = twin.augment(chain_, fields, np.zeros((8, 2), np.int32))
    ours = augment(chain_, jax.tree.map(jnp.asarray, fields), keys)
    np.testing.assert_allclose(ours["image"], theirs["image"].numpy(), atol=2e-4)
    assert (np.asarray(ours["segments"]) == theirs["segments"].numpy()).mean() > 0.99


@tf_only
def test_damages_in_a_stream():
    from aigc_jax.data import augment as twin

    flat = np.full((32, 16, 16, 3), 128, np.uint8)
    seeds = np.arange(64, dtype=np.int32).reshape(32, 2)
    made = twin.arrays(parse("noise(20)"), {"image": flat}, seeds)["image"].astype(float) - 128
    assert abs(made.std() - 20) < 0.7
    some = np.array([7, 3])
    again = twin.arrays(parse("noise(20)"), {"image": flat[some]}, seeds[some])["image"]
    np.testing.assert_array_equal(again.astype(float) - 128, made[some])
    images = np.stack([photo(32, seed=i) for i in range(4)])
    blurred = twin.arrays(parse("blur(1.5)"), {"image": images}, seeds[:4])["image"]
    assert np.abs(np.float64(blurred) - run("blur(1.5)", images)[0])[:, 8:-8, 8:-8].max() <= 1
    segments = (images[..., 0] // 64).astype(np.int32)
    moved = twin.arrays(parse("elastic(2)"), {"image": images, "segments": segments}, seeds[:4])
    close = np.abs(moved["image"][..., 0] / 64 - 0.5 - moved["segments"]) < 0.75
    assert close.mean() > 0.97 and (moved["segments"] != segments).any()


@tf_only
def test_uniform_numbers():
    import tensorflow as tf
    from scipy import stats

    from aigc_jax.data.bits import uniform

    seeds = np.random.default_rng(0).integers(-(2**31), 2**31, (5000, 2)).astype(np.int32)
    u = uniform(tf, seeds, 3).numpy()
    assert u.shape == (5000, 3) and u.min() >= 0 and u.max() < 1
    assert min(stats.kstest(column, "uniform").pvalue for column in u.T) > 1e-3
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.05
    np.testing.assert_array_equal(uniform(tf, seeds[5:7], 3), u[5:7])


def test_flips_in_a_stream_are_augmentations():
    pytest.importorskip("tensorflow")
    from aigc_jax.data import pipeline, tasks
    from aigc_jax.data.dataset import Dataset

    images = np.stack([photo(8, seed=i) for i in range(16)])
    data = Dataset("some", 16, 8, 3, images=images)

    def batches(**more):
        stream = pipeline.batches(data, tasks.generate, seed=1, repeat=False, **more)
        return np.concatenate([batch["image"] for batch in stream])

    whole = batches(batch_size=8, augment="negative(1),vflip(1)")
    plain = batches(batch_size=8)
    np.testing.assert_allclose(whole, -plain[:, ::-1], atol=1e-6)
    # One process's share of them, and the same from the second batch on.
    text = ",".join(EVERY)
    whole = batches(batch_size=8, augment=text)
    parts = [batches(batch_size=8, augment=text, process_index=i, process_count=2) for i in (0, 1)]
    joined = np.stack([x.reshape(2, 4, 8, 8, 3) for x in parts], 1).reshape(whole.shape)
    np.testing.assert_allclose(joined, whole, atol=1e-5)
    np.testing.assert_allclose(batches(batch_size=8, augment=text, start=1), whole[8:], atol=1e-5)
    placed = Dataset("placed", 16, 8, 3, images=images, placed=True)
    assert next(pipeline.batches(placed, tasks.generate, seed=1, batch_size=4, augment="hue(9)"))
    with pytest.raises(UserError, match="augment that moves pixels would make false"):
        pipeline.batches(placed, tasks.generate, seed=1, batch_size=4, augment="flip")


# ---- in the compiled step ----


class Counted(tuple):
    """A state that is its step alone."""

    step = property(lambda self: self[0])


jax.tree_util.register_pytree_node(Counted, lambda s: (tuple(s), None), lambda _, s: Counted(s))


def watched(state, batch, rng):
    """A step that returns what it sees, a number an example."""
    seen = jnp.stack([batch["image"].mean((1, 2, 3)), batch["segments"].mean((1, 2))])
    return Counted((state.step + 1,)), {"seen": seen}


def test_the_step_sees_them_augmented_the_same_on_eight_devices():
    text = "rotate(30),color(0.3),noise(5)"
    images = np.stack([photo(8, seed=i) for i in range(16)])
    batch = {"image": np.float32(floats(images)), "segments": np.int32(images[..., 0] > 128)}
    state, seen = Counted((jnp.int32(5),)), []
    step = jax.jit(augmented(watched, parse(text)))
    new, whole = step(state, batch, RNG)
    assert new.step == 6
    split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
    across = jax.pmap(augmented(watched, parse(text), "data"), "data", in_axes=(None, 0, None))
    parts = across(state, split, RNG)[1]["seen"]
    np.testing.assert_allclose(np.moveaxis(parts, 0, 1).reshape(2, 16), whole["seen"], atol=1e-6)
    seen = [np.asarray(step(Counted((jnp.int32(i),)), batch, RNG)[1]["seen"]) for i in (5, 6)]
    assert np.abs(seen[0] - seen[1]).max(1).min() > 1e-3  # other numbers at every step
    np.testing.assert_array_equal(seen[0], whole["seen"])


def test_a_batch_without_images():
    with pytest.raises(UserError, match="batches hold no images"):
        augmented(watched, parse("flip"))(Counted((0,)), {"source": jnp.zeros((2, 4, 4, 3))}, RNG)


# ---- mixed ----


def pairs(text, count=16, keys=RNG):
    batch = {"image": floats(np.stack([photo(8, seed=i) for i in range(count)]))}
    batch["label"] = jnp.arange(count)
    split = jax.random.split(keys, count)
    return batch, jax.jit(functools.partial(mixed, parse(text, mixing=True).mixes))(batch, split)


def test_mixup_is_its_equation():
    batch, made = pairs("mixup(0.4)", 4000)
    own = np.asarray(made["share"])[:, None, None, None]
    other = np.asarray(batch["image"])[np.arange(4000) ^ 1]
    expected = own * np.asarray(batch["image"]) + (1 - own) * other
    np.testing.assert_allclose(made["image"], expected, atol=1e-6)
    np.testing.assert_array_equal(made["other_label"], np.arange(4000) ^ 1)
    # Beta(a, a) has variance 1 / (4 (2 a + 1)).
    assert abs(own.mean() - 0.5) < 0.02 and abs(own.var() - 1 / (4 * 1.8)) < 0.01


def test_cutmix_shares_are_of_area():
    batch, made = pairs("cutmix", 400)
    own, other = (np.asarray(batch["image"])[np.arange(400) ^ i] for i in (0, 1))
    is_own = (np.asarray(made["image"]) == own).all(-1)
    is_other = (np.asarray(made["image"]) == other).all(-1)
    assert (is_own | is_other).all()
    np.testing.assert_allclose(made["share"], is_own.mean((1, 2)), atol=1e-6)
    for mask in ~is_own:  # a box
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert mask.sum() == len(rows) * len(columns)
        assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()


def test_one_of_several_is_drawn():
    batch, made = pairs("mixup,cutmix", 400)
    copied = (np.asarray(made["image"]) == np.asarray(batch["image"])).all(-1).any((1, 2))
    assert 0.3 < copied.mean() < 0.6  # cutmix, but where its box is everything


def test_a_classifier_learns_of_both_labels():
    """Its loss is the mean of both labels' losses by share; the same on eight devices."""
    from aigc_jax.methods import classifier

    batch, made = pairs("mixup")
    label = jnp.arange(16) % 3
    mixed_ = made | {"label": label, "other_label": label[jnp.arange(16) ^ 1]}
    target = classifier._target(mixed_, 3)
    own = np.asarray(made["share"])
    for i in range(16):
        expected = np.zeros(3)
        expected[label[i]] += own[i]
        expected[label[i ^ 1]] += 1 - own[i]
        np.testing.assert_allclose(target[i], expected, atol=1e-6)

    def seen(state, batch, rng):
        both = jnp.stack([batch["image"].mean((1, 2, 3)), batch["share"]])
        return Counted((state.step + 1,)), {"seen": both}

    chain_ = parse("flip,mixup", mixing=True)
    fields = {"image": batch["image"], "label": label}
    state = Counted((jnp.int32(3),))
    whole = jax.jit(augmented(seen, chain_))(state, fields, RNG)[1]["seen"]
    split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), fields)
    across = jax.pmap(augmented(seen, chain_, "data"), "data", in_axes=(None, 0, None))
    parts = across(state, split, RNG)[1]["seen"]
    np.testing.assert_allclose(np.moveaxis(parts, 0, 1).reshape(2, 16), whole, atol=1e-6)


def test_an_odd_batch_has_no_pairs():
    batch = {"image": jnp.zeros((3, 4, 4, 1)), "label": jnp.zeros(3, jnp.int32)}
    step = augmented(watched, parse("mixup", mixing=True))
    with pytest.raises(UserError, match="part of the batch is 3 images: make it even"):
        step(Counted((0,)), batch, RNG)
