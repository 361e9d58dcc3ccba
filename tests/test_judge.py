"""Which network judges a run's samples, and what it is trained on."""

import numpy as np
import pytest

from aigc_jax import config as configs
from aigc_jax import judge


@pytest.fixture
def places(tmp_path):
    images = np.zeros((8, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "plain.npz", images=images)
    np.savez(tmp_path / "named.npz", images=images, labels=np.arange(8) % 3)
    return {name: f"npz:{tmp_path / name}.npz" for name in ("plain", "named")}


def resolved(task, classes=0, **data):
    config = configs.default()
    config.update(task=task, image_size=8, channels=3, num_classes=classes)
    config.data.update(data)
    config.eval.extractor = "digits_classifier:smoke"
    return config


def found(config, tmp_path, labelled):
    named, its = judge.find(config, tmp_path / "run", labelled)
    folder = "judge_a" if (config.task, config.eval.direction) == ("unpaired", "b2a") else "judge"
    assert named.eval.extractor == (str(tmp_path / "run" / folder) if its else "")
    if its is not None:
        configs.validate(its)
        assert (its.method, its.image_size, its.channels) == ("classifier", 8, 3)
    return its


@pytest.mark.parametrize(("direction", "labelled"), [("a2b", True), ("b2a", False)])
def test_of_two_domains_it_reads_the_target(places, tmp_path, direction, labelled):
    """Whatever the source has: its labels are asked of the target's judge."""
    for a, b in (("plain", "named"), ("named", "plain")):
        config = resolved("unpaired", a=places[a], b=places[b], load_size=10)
        config.eval.direction = direction
        target = b if direction == "a2b" else a
        its = found(config, tmp_path, labelled=a == "named")
        assert (its is None) == (target == "plain")
        if its is not None:
            assert (its.task, its.num_classes) == ("label", -1)
            assert its.data.source == places["named"]
            assert (its.data.a, its.data.b, its.data.load_size) == ("", "", 0)


@pytest.mark.parametrize(
    ("b", "held_out", "source", "split", "its_test"),
    [
        ("mnistm:train[5:]", "mnistm:test", "mnistm", "train[5:]", "test"),
        ("mnistm:train", "mnistm:train[:9]", "mnistm", "train", "train[:9]"),
        ("mnistm", "", "mnistm", "train", "val"),
        ("digits", "mnistm:test", "digits", "train", "val"),
    ],
)
def test_a_split_that_the_source_names(tmp_path, monkeypatch, b, held_out, source, split, its_test):
    """It would win over the one to measure on."""
    asked = []
    dataset = judge.configured.dataset

    def small(config, split):
        asked.append(split)
        digits = config.copy_and_resolve_references()
        digits.data.source = "digits"
        return dataset(digits, "train")

    monkeypatch.setattr(judge.configured, "dataset", small)
    config = resolved("unpaired", a="digits", b=b)
    config.eval.b, config.eval.split = held_out, "val"
    its = found(config, tmp_path, labelled=True)
    assert (its.data.source, its.data.split, its.eval.split) == (source, split, its_test)
    assert asked == [split]


def test_the_name_of_a_tfds_set():
    assert judge._apart("tfds:mnist/train[30000:]") == ("tfds:mnist", "train[30000:]")
    assert judge._apart("tfds:cycle_gan/maps/trainA") == ("tfds:cycle_gan/maps", "trainA")
    assert judge._apart("tfds:mnist") == ("tfds:mnist", "")
    assert judge._apart("folder:a/b") == ("folder:a/b", "")


def test_of_colours_it_reads_the_source(tmp_path):
    its = found(resolved("colorize", 10, source="digits", swap=True), tmp_path, labelled=True)
    assert (its.task, its.num_classes, its.data.source) == ("label", -1, "digits")
    assert found(resolved("colorize", source="digits"), tmp_path, labelled=False) is None


def test_each_domain_has_a_judge_of_its_own(tmp_path):
    """A run that is continued the other way round must not find that of the other domain."""
    for direction, folder in (("a2b", "judge"), ("b2a", "judge_a")):
        config = resolved("unpaired", a="digits", b="digits")
        config.eval.direction = direction
        named, its = judge.find(config, tmp_path, True)
        assert named.eval.extractor == str(tmp_path / folder) and its is not None


def test_of_pairs_there_is_none(tmp_path):
    assert found(resolved("pairs", source="pairs:x"), tmp_path, labelled=False) is None


def test_a_network_by_name_stays(tmp_path):
    for name in ("", "inception"):
        config = resolved("unpaired", a="digits", b="digits")
        config.eval.extractor = name
        named, its = judge.find(config, tmp_path, True)
        assert its is None and named.eval.extractor == name


def test_the_probe_reads_scenes_by_its_own_task(tmp_path):
    """Of every combination: one that knew those of training alone would not read the others."""
    config = resolved("text", source="shapes:2")
    config.eval.extractor = "shapes_probe:smoke"
    named, its = judge.find(config, tmp_path, labelled=False)
    configs.validate(its)
    assert named.eval.extractor == str(tmp_path / "judge")
    assert (its.method, its.task, its.num_classes) == ("detector", "scene", 0)
    assert (its.data.source, its.data.split, its.image_size) == ("shapes:2", "all", 8)
    assert config.data.split == "train"
