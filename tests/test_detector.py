"""The probe of shapes: its truth in closed form, one device as many, and that it learns to read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from aigc_jax import config as configs
from aigc_jax import networks, parallel, scores, train
from aigc_jax.data import configured, shapes
from aigc_jax.data.dataset import Request, subset
from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Conv
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.methods import detector
from aigc_jax.metrics import attributes
from aigc_jax.metrics.attributes import Reading
from aigc_jax.metrics.protocols import PROTOCOLS
from aigc_jax.models.detector import Detector, Maps, peaks
from aigc_jax.sample_scores import some
from aigc_jax.scoring import Seen, Viewer
from aigc_jax.sets import Filled
from aigc_jax.types import to_uint8

GRID = 8


@pytest.fixture(scope="module")
def batch():
    data = shapes.read_shapes(_request(32))
    rows = np.arange(8)
    fields = {name: data.fields[name].function(rows) for name in ("scene", "background", "asked")}
    image = data.read(rows)[0].astype(np.float32) / 127.5 - 1
    valid = np.ones(8, np.float32)
    return {"image": image, **fields, "index": rows.astype(np.int32), "valid": valid}


def _request(size):
    return Request("2", "all", None, size, None, 0)


class Small(nn.Module):
    """What a detector gives, of two layers: the real one takes long to compile."""

    classes: tuple[int, ...] = attributes.CLASSES
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        for kernel, stride in ((7, 4), (3, 1)):
            x = Conv(64, kernel_size=kernel, stride=stride, padding=kernel // 2)(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name)(x, train=train))
        maps, features = nn.Dense(3 + sum(self.classes))(x), x.mean((1, 2))
        background = nn.Dense(len(shapes.BACKGROUNDS))(features)
        return Maps(maps[..., 0] - 4, maps[..., 1:3], maps[..., 3:], background, features)


@pytest.fixture(scope="module")
def spec():
    whole = detector.from_config(configs.load("shapes_probe"))
    return dataclasses.replace(whole, model=Small(), tx=optax.sgd(0.1))


def perfect_maps(batch):
    """Maps with nothing but the truth in them."""
    heat = np.full((8, GRID, GRID), -20, np.float32)
    offset = np.zeros((8, GRID, GRID, 2), np.float32)
    classes = np.zeros((8, GRID, GRID, sum(attributes.CLASSES)), np.float32)
    for b, scene in enumerate(batch["scene"]):
        for there, *labels, x, y, _ in scene:
            i, j = int(y * GRID), int(x * GRID)
            if there:
                heat[b, i, j] = 20
                offset[b, i, j] = x * GRID - j - 0.5, y * GRID - i - 0.5
                for first, label in zip(np.cumsum([0, *attributes.CLASSES]), labels, strict=False):
                    classes[b, i, j, first + int(label)] = 40
    background = 40 * np.eye(len(shapes.BACKGROUNDS), dtype=np.float32)[batch["background"]]
    maps = Maps(heat, offset, classes, background, np.zeros((8, 1), np.float32))
    return jax.tree.map(jnp.asarray, maps)


def test_peaks_are_where_the_centres_are(batch):
    found = peaks(perfect_maps(batch), detector.MOST)
    for scene, present, centre in zip(batch["scene"], found.present, found.centre, strict=True):
        there = scene[scene[:, 0] > 0]
        assert (present > 0).sum() == len(there)
        mine = np.asarray(centre)[: len(there)]
        far = np.abs(mine[:, None] - there[None, :, 5:7]).max(-1)
        np.testing.assert_allclose(far.min(0), 0, atol=1e-6)


def test_a_neighbour_that_is_higher_is_the_peak():
    heat = np.full((1, GRID, GRID), -5, np.float32)
    heat[0, 2, 2:4] = 1, 2
    maps = Maps(heat, np.zeros((1, GRID, GRID, 2)), np.zeros((1, GRID, GRID, 1)), None, None)
    found = peaks(maps, 2)
    assert found.present[0, 0] == 2 and found.present[0, 1] <= -5
    np.testing.assert_allclose(found.centre[0, 0], [3.5 / GRID, 2.5 / GRID])


def test_the_truth_costs_nothing_and_all_else_more(batch):
    maps = perfect_maps(batch)
    truth = detector.losses(maps, batch, attributes.CLASSES)
    assert all(value < 1e-5 for value in truth.values()), truth
    for name, field in [
        ("heat_loss", "heat"),
        ("offset_loss", "offset"),
        ("class_loss", "classes"),
        ("background_loss", "background"),
    ]:
        other = maps._replace(**{field: jnp.roll(getattr(maps, field), 1, -1)})
        assert detector.losses(other, batch, attributes.CLASSES)[name] > 0.1


def test_the_heat_that_is_asked(batch):
    """1 at each centre's cell, and exp(-d^2 / 2 s^2) of the nearest around: by hand in float64."""
    scene = batch["scene"]
    cell = np.floor(scene[..., 5:7] * GRID)
    found = detector._bumps(jnp.asarray(cell), scene[..., 0], scene[..., 7] * GRID, GRID)
    i, j = np.mgrid[:GRID, :GRID]
    for b in range(8):
        want = np.zeros((GRID, GRID))
        for (there, *_, radius), (x, y) in zip(scene[b], cell[b], strict=True):
            spread = max(radius * GRID / 3, 0.7)
            bump = np.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * spread**2))
            want = np.maximum(want, there * bump)
        np.testing.assert_allclose(found[b], want, atol=1e-6)


def test_the_focal_loss_by_its_formula():
    p, target = np.array([0.9, 0.2, 0.7]), np.array([1.0, 1.0, 0.5])
    want = [-(0.1**2) * np.log(0.9), -(0.8**2) * np.log(0.2), -(0.5**4) * 0.7**2 * np.log(0.3)]
    logits = jnp.asarray(np.log(p / (1 - p)))
    np.testing.assert_allclose(detector.focal(logits, target), want, rtol=1e-5)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_eight_devices_step_as_one(spec, batch, mode):
    rng = jax.random.key(0)
    state = detector.init_state(spec, rng, batch)
    alone, metrics = jax.jit(functools.partial(detector.train_step, spec))(state, batch, rng)

    layout = parallel.layout(mode)
    many = dataclasses.replace(
        spec, axis_name=layout.axis_name, model=spec.model.clone(axis_name=layout.axis_name)
    )
    step = layout.compile(functools.partial(detector.train_step, many), state, stacked=False)
    placed = layout.place_state(state)
    shared, same = step(placed, layout.place_batch(batch), rng)
    pairs = zip(*(jax.tree.leaves(x.variables) for x in (alone, shared)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, np.asarray(b).reshape(-1, *a.shape)[0], atol=2e-6)
    np.testing.assert_allclose(np.ravel(same["loss"])[0], metrics["loss"], rtol=1e-5)


def test_it_learns_to_read_what_it_is_shown(spec, batch):
    """Eight pictures by heart; what it then reads of them, `eval_step` and `predict` agree on."""
    spec = dataclasses.replace(spec, tx=optax.adam(1e-2), ema_half_life=0.0)
    state = detector.init_state(spec, jax.random.key(0), batch)
    step = jax.jit(functools.partial(detector.train_step, spec))
    for _ in range(80):
        state, metrics = step(state, batch, jax.random.key(1))
    assert metrics["loss"] < 1
    found = detector.eval_step(spec, state, batch, None)
    shares = {name: float(a / n) for name, (a, n) in found.items() if n}
    assert min(shares[name] for name in ("shape", "colour", "size", "background", "count")) > 0.7
    reading, features = detector.predict(spec, state, batch["image"])
    assert features.shape == (8, 64)
    again = attributes.Reading.unpacked(reading.packed())
    for a, b in zip(reading, again, strict=True):
        np.testing.assert_array_equal(a, b)
    told = attributes.shares(np.asarray(reading.packed()), batch["asked"])
    assert told["relation"] == pytest.approx(shares["relation"])


def test_damage_is_each_examples_own(spec, batch):
    """As strong as said, and the same wherever in the batch an example lies."""
    spec = dataclasses.replace(spec, noise=0.2, blur=0.5)
    keys = jax.random.split(jax.random.key(0), 8)
    whole = detector._damaged(spec, keys, batch["image"])
    part = detector._damaged(spec, keys[3:5], batch["image"][3:5])
    np.testing.assert_allclose(whole[3:5], part, atol=1e-6)
    clean = detector._damaged(dataclasses.replace(spec, noise=0.0, blur=0.0), keys, batch["image"])
    np.testing.assert_allclose(clean, batch["image"], atol=1e-6)
    assert 0.01 < float(jnp.abs(whole - batch["image"]).mean()) < 0.2


@pytest.mark.parametrize("size", [32, 128])
def test_the_maps_of_any_size_it_reads(size):
    """As many cells, parameters of the cells alone: a larger image goes through more stages."""
    model, image = Detector((5, 4), 3, width=8), jnp.zeros((2, size, size, 3))
    found, variables = jax.eval_shape(
        functools.partial(model.init_with_output, train=False), jax.random.key(0), image
    )
    got = [x.shape for x in found]
    assert got == [(2, 16, 16), (2, 16, 16, 2), (2, 16, 16, 9), (2, 3), (2, 32)]
    stages = [name for name in variables["params"] if name.startswith("Conv")]
    assert len(stages) == {32: 8, 128: 10}[size]


def test_sizes_that_it_does_not_read():
    with pytest.raises(UserError, match=r"of 8, 16, 32, 64, .* pixels, not of 24"):
        jax.eval_shape(
            functools.partial(Detector(grid=GRID).init, train=False),
            jax.random.key(0), jnp.zeros((1, 24, 24, 3)),
        )  # fmt: skip


def test_a_run_of_it_is_an_extractor(tmp_path, monkeypatch):
    """Trained by a config, read back, and what it sees of held-out scenes with their captions."""
    monkeypatch.setitem(shapes.SPLITS, "novel", 300)
    monkeypatch.setattr("aigc_jax.models.detector.Detector", Small)
    config = configs.load("shapes_probe:smoke")
    del config.model.width
    config.parallel = "jit"
    config.update(num_train_steps=2, log_every=2, sample_every=0, checkpoint_every=0)
    config.eval.update(source="shapes:2/novel", batch_size=100)
    train.run(config, tmp_path / "probe")
    told = scores.read(tmp_path / "probe")[-1]
    assert told["scores"]["shape"]["n"] > 300 == told["scores"]["all"]["n"]
    network = networks.load(str(tmp_path / "probe"), None, PROTOCOLS["tf1"])
    held = configured.held_out(config)
    real = Filled(
        "some", 30, (32, 32), 3, functools.partial(some, held, 30),
        lambda batch: np.asarray(to_uint8(batch["image"])),
    )  # fmt: skip
    seen = Viewer(network).see(real, quiet=True)
    rows = subset(len(held), 30)
    np.testing.assert_array_equal(seen.asked, held.data.fields["asked"].function(rows))
    assert seen.labels is None and Reading.unpacked(seen.readings).present.shape == (30, 4)
    seen.save(tmp_path / "seen")
    again = Seen.load(tmp_path / "seen", "some")
    np.testing.assert_array_equal(again.readings, seen.readings)
    np.testing.assert_array_equal(again.asked, seen.asked)
