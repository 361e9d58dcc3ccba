"""Training streams and held-out images of translation, in both directions, as a config says."""

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax import config as configs
from aigc_jax.data import configured
from aigc_jax.errors import UserError

COUNTS = {"a": 20, "b": 13, "test_a": 7, "test_b": 5, "truth": 7}
PHOTOS = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """npz files: a is in colour with labels, b grey; `truth` is the negative of test_a."""
    monkeypatch.chdir(tmp_path)
    for name, count in COUNTS.items():
        images = PHOTOS[:count]
        if name.endswith("b"):
            images = images[..., :1]
        images = 255 - images if name == "truth" else images
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 3)


def unpaired(**values):
    return config(
        task="unpaired", data__a="npz:a.npz", data__b="npz:b.npz", eval__a="npz:test_a.npz",
        eval__b="npz:test_b.npz", **values,
    )  # fmt: skip


def config(**values):
    found = configs.default()
    found.image_size, found.batch_size, found.eval.batch_size = 8, 8, 4
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    configs.validate(found)
    return found


def levels(images):
    return np.round((images + 1) * 127.5).astype(np.uint8)


def read(held, field):
    """All of a field, without the fillers."""
    batches = list(held)
    valid = np.concatenate([batch["valid"] for batch in batches]) == 1
    assert valid.sum() == len(held)
    return np.concatenate([batch[field] for batch in batches])[valid]


def fields(held):
    return set(next(iter(held))) - {"index", "valid"}


# --- training ---


def test_unpaired_training():
    resolved, stream = configured.training(unpaired(data__flip=True))
    assert (resolved.channels, resolved.num_classes, len(stream.class_names)) == (3, 3, 3)
    batch = next(stream(0))
    assert {k: v.shape for k, v in batch.items()} == {
        "a": (8, 8, 8, 3), "b": (8, 8, 8, 3), "label": (8,), "index": (8,)
    }  # fmt: skip
    np.testing.assert_array_equal(batch["b"][..., :1], batch["b"][..., 2:])  # grey, repeated
    assert configs.resolve(resolved, batch) == resolved
    again = next(stream(5))
    later = [batch for _, batch in zip(range(6), stream(0), strict=False)][5]
    jax.tree.map(np.testing.assert_array_equal, again, later)


@pytest.mark.parametrize(("a", "b", "asked", "channels"), [
    ("b", "b", 0, 1), ("b", "a", 0, 3), ("a", "a", 0, 3), ("a", "b", 1, 1), ("b", "b", 3, 3),
])  # fmt: skip
def test_domains_have_one_number_of_channels(a, b, asked, channels):
    mixed = unpaired(channels=asked)
    mixed.data.a, mixed.data.b = f"npz:{a}.npz", f"npz:{b}.npz"
    resolved, stream = configured.training(mixed)
    batch = next(stream(0))
    assert resolved.channels == batch["a"].shape[-1] == batch["b"].shape[-1] == channels


def test_load_size_is_cropped():
    for values in (
        {"task": "colorize", "data__source": "npz:a.npz"},
        {"task": "unpaired", "data__a": "npz:a.npz", "data__b": "npz:b.npz"},
    ):
        sized = config(image_size=6, data__load_size=8, **values)
        resolved, stream = configured.training(sized)
        batch = next(stream(0))
        assert batch["a"].shape == batch["b"].shape == (8, 6, 6, 3)
        assert resolved.image_size == 6
    photos = {photo[y : y + 6, x : x + 6].tobytes()
              for photo in PHOTOS[:20] for y in range(3) for x in range(3)}  # fmt: skip
    assert {image.tobytes() for image in levels(batch["a"])} <= photos


def test_pairs_training(tmp_path):
    for i in range(4):
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        whole = np.concatenate([PHOTOS[i], 255 - PHOTOS[i]], axis=1)
        Image.fromarray(whole).save(tmp_path / "set" / "train" / f"{i}.png")
    for swap in (False, True):
        pairs = config(task="pairs", data__source="pairs:set", data__swap=swap, eval__split="train")
        resolved, stream = configured.training(pairs)
        assert (resolved.channels, resolved.num_classes) == (3, 0)
        batch = next(stream(0))
        left, right = (levels(batch[field]) for field in ("ba" if swap else "ab"))
        np.testing.assert_array_equal(left, 255 - right)
        assert {image.tobytes() for image in left} == {photo.tobytes() for photo in PHOTOS[:4]}
        held = configured.held_out(resolved)
        truth = 255 - PHOTOS[:4] if not swap else PHOTOS[:4]
        np.testing.assert_array_equal(levels(read(held.targets, "image")), truth)
        assert held.name == "pairs:set/train at 8x8x3"
        assert held.targets.name == "pairs:set/train (b) at 8x8x3"


# --- held out ---


@pytest.mark.parametrize(("direction", "origin", "target"), [("a2b", "a", "b"), ("b2a", "b", "a")])
def test_unpaired_held_out(direction, origin, target):
    held = configured.held_out(unpaired(channels=3, eval__direction=direction))
    assert fields(held) == {origin, "label"}
    assert (len(held), len(held.targets)) == (COUNTS[f"test_{origin}"], COUNTS[f"test_{target}"])
    expected = {"a": PHOTOS[:7], "b": PHOTOS[:5, ..., :1].repeat(3, axis=-1)}
    np.testing.assert_array_equal(levels(read(held, origin)), expected[origin])
    np.testing.assert_array_equal(levels(read(held.targets, "image")), expected[target])
    np.testing.assert_array_equal(read(held, "label"), np.arange(len(held)) % 3)
    assert held.name == f"npz:test_{origin}.npz at 8x8x3"
    assert held.targets.name == f"npz:test_{target}.npz at 8x8x3"


@pytest.mark.parametrize(("direction", "origin", "target"), [("a2b", "a", "b"), ("b2a", "b", "a")])
def test_unpaired_with_the_truth(direction, origin, target):
    paired = unpaired(eval__direction=direction, eval__paired=True)
    paired.eval.b = "npz:truth.npz"
    held = configured.held_out(paired)
    assert fields(held) == {"a", "b", "label"}
    np.testing.assert_array_equal(levels(read(held, "a")), PHOTOS[:7])
    np.testing.assert_array_equal(levels(read(held, "b")), 255 - PHOTOS[:7])
    np.testing.assert_array_equal(read(held.targets, "image"), read(held, target))
    assert fields(held.targets) == {"image", "label"} and len(held.targets) == 7
    assert held.name.startswith(held.data.name) and held.targets.data.name in held.name


@pytest.mark.parametrize(("direction", "target"), [("a2b", "b"), ("b2a", "a")])
def test_colorize_held_out(direction, target):
    held = configured.held_out(
        config(task="colorize", data__source="npz:a.npz", eval__split="all",
               eval__direction=direction)
    )  # fmt: skip
    assert fields(held) == {"a", "b", "label"}
    np.testing.assert_array_equal(levels(read(held, "b")), PHOTOS[:20])
    np.testing.assert_array_equal(read(held.targets, "image"), read(held, target))
    assert len(held) == len(held.targets) == 20


def test_other_real_images():
    """They take the target's place; the inputs stay."""
    for made in (
        unpaired(channels=3),
        config(task="colorize", data__source="npz:a.npz", eval__split="all"),
    ):
        held = configured.held_out(made, "npz:truth.npz")
        np.testing.assert_array_equal(levels(read(held.targets, "image")), 255 - PHOTOS[:7])
        assert "a" in fields(held) and held.data.name != held.targets.data.name


def test_generation_is_its_own_target():
    held = configured.held_out(config(data__source="digits"))
    assert held.targets is held and len(held) == 300
    other = configured.held_out(config(data__source="digits"), "npz:a.npz")
    assert other.targets is other and other.name == "npz:a.npz at 8x8x3"


def negatives(example):
    """A user's own task of translation."""
    return {"a": example["image"], "b": -example["image"]}


def plain(example):
    """A user's own task of generation."""
    return {"image": example["image"]}


def test_tasks_of_ones_own():
    for name, field in (("negatives", "b"), ("plain", "image")):
        own = config(task=f"{__name__}.{name}", data__source="digits")
        held = configured.held_out(own)
        np.testing.assert_array_equal(read(held.targets, "image"), read(held, field))
    own.data.swap = True
    with pytest.raises(UserError, match=r"config\.data\.swap: the task .*plain' has no pairs"):
        list(configured.held_out(own))


def test_splits_of_the_training_domains():
    made = config(task="unpaired", data__a="digits", data__b="digits")
    held = configured.held_out(made)
    assert held.data.name == held.targets.data.name == "digits/test"
    assert configured.training(made)[0].num_classes == 10


# --- errors ---


def test_missing_domains_are_named():
    for domain in "ab":
        wrong = unpaired()
        wrong.data[domain] = "folder:nowhere"
        with pytest.raises(UserError, match=rf"^config\.data\.{domain}: no folder 'nowhere'"):
            configured.training(wrong)
        wrong.eval[domain] = "folder:gone"
        with pytest.raises(UserError, match=rf"^config\.eval\.{domain}: no folder 'gone'"):
            configured.held_out(wrong)
        wrong.eval[domain] = ""
        with pytest.raises(UserError, match=rf"^config\.data\.{domain}: no folder 'nowhere'"):
            configured.held_out(wrong)


def test_pairs_of_two_lengths():
    with pytest.raises(
        UserError, match=r"eval\.paired: npz:test_a.npz holds 7 images and .* 5, so"
    ):
        configured.held_out(unpaired(eval__paired=True))


def test_pairs_for_another_task(tmp_path):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (16, 8)).save(tmp_path / "set" / "a.png")
    _, stream = configured.training(config(task="generate", data__source="pairs:set"))
    with pytest.raises(UserError, match=r"set config\.task=pairs"):
        next(stream(0))


# --- restoration ---


def test_damaged_training():
    """Each image is the truth of its own damage; crops, mirrors and turns are of both alike."""
    made = config(task="restore", data__source="npz:a.npz", data__degrade="noise(20)")
    resolved, stream = configured.training(made)
    batch = next(stream(0))
    assert resolved.num_classes == 3 and {"source", "target", "label"} < set(batch)
    assert (PHOTOS[:20] == levels(batch["target"])[0]).all((1, 2, 3)).any()
    error = (batch["source"] - batch["target"]) * 127.5
    assert 15 < error.std() < 25 and abs(error.mean()) < 3
    made.data.update(turn=True, flip=True, degrade="noise(0)")
    _, stream = configured.training(made)
    batch = next(stream(0))
    np.testing.assert_array_equal(batch["source"], batch["target"])


def test_holes_in_training():
    made = config(task="inpaint", data__source="npz:a.npz", data__mask="half")
    batch = next(configured.training(made)[1](0))
    assert batch["mask"].shape == (8, 8, 8, 1) and batch["mask"].mean() == 0.5
    np.testing.assert_array_equal(batch["source"], batch["target"] * batch["mask"])
    made.data.degrade = "noise(20)"
    noisy = next(configured.training(made)[1](0))
    error = (noisy["source"] - noisy["target"] * noisy["mask"]) * 127.5
    np.testing.assert_array_equal(noisy["mask"], batch["mask"])
    known = np.broadcast_to(batch["mask"] == 1, error.shape)
    assert (error[~known] == 0).all() and 15 < error[known].std() < 25


def test_damaged_images_are_held_out_whole():
    """Of `eval.source`, at the size that training crops from; the damage is the same each time."""
    made = config(
        task="restore", data__source="npz:a.npz", data__degrade="noise(20)", data__load_size=8,
        image_size=4, eval__source="npz:test_a.npz",
    )  # fmt: skip
    held = configured.held_out(made)
    assert fields(held) == {"source", "target", "label"} and len(held) == 7
    np.testing.assert_array_equal(levels(read(held, "target")), PHOTOS[:7])
    np.testing.assert_array_equal(read(held, "source"), read(held, "source"))
    np.testing.assert_array_equal(levels(read(held.targets, "image")), PHOTOS[:7])
    other = configured.held_out(made, "npz:a.npz")
    assert len(other) == 7 and len(other.targets) == 20
    assert next(configured.training(made)[1](0))["target"].shape == (8, 4, 4, 3)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"task": "restore"}, "config.data.degrade, e.g. noise"),
        ({"task": "inpaint"}, "config.data.mask, e.g. to strokes"),
        ({"task": "inpaint", "data__mask": "stroke"}, "strokes"),
        ({"task": "restore", "data__degrade": "nois(3)"}, "noise"),
    ],
)
def test_what_is_missing_for_damage_is_named(fields, line):
    made = config(data__source="npz:a.npz", **fields)
    with pytest.raises(UserError, match=line.replace(".", "[.]")):
        next(configured.training(made)[1](0))


def test_damage_has_no_pairs():
    with pytest.raises(UserError, match="has no pairs"):
        config(task="restore", data__source="npz:a.npz", data__swap=True)
