"""What `validate` and `resolve` say of translation, and configs written before it came."""

import json

import numpy as np
import pytest

from aigc_jax import config as configs
from aigc_jax.errors import UserError


def with_values(**values):
    config = configs.default()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return config


UNPAIRED = {"task": "unpaired", "data__a": "folder:x", "data__b": "mnistm"}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"data__load_size": 36},
        {"data__load_size": 32},
        {"task": "pairs", "data__swap": True, "eval__direction": "b2a"},
        UNPAIRED,
        {**UNPAIRED, "eval__a": "folder:y", "eval__paired": True},
        {**UNPAIRED, "data__a": "mnistm:train[:9]", "eval__a": "mnistm:test"},
        {"accumulate": 4, "on_collapse": "stop"},
        {"on_collapse": "rollback", "rollback__factor": 0.3, "rollback__times": 1},
        {"on_nonfinite": "skip"},
    ],
)
def test_good_values(values):
    configs.validate(with_values(**values))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"data__load_size": 31}, "config.data.load_size is 31: .* at least that"),
        ({"data__load_size": -1}, "config.data.load_size is -1"),
        ({"data__a": "folder:x"}, "data.a is 'folder:x' and config.data.b is empty"),
        ({"data__b": "folder:x", "task": "unpaired"}, "data.b is 'folder:x' and config.data.a"),
        ({"task": "unpaired"}, "'unpaired' needs two domains: set config.data.a and data.b"),
        ({**UNPAIRED, "task": "pairs"}, "config.task is 'pairs': set config.task=unpaired"),
        ({"eval__b": "folder:x"}, "config.eval.b is 'folder:x', a domain of the task 'unpaired'"),
        ({"data__swap": True}, "config.data.swap: the task 'label' has no pairs: leave it out"),
        ({**UNPAIRED, "data__swap": True}, "no pairs: exchange data.a and data.b"),
        ({"eval__direction": "a2c"}, "config.eval.direction is 'a2c'. Did you mean 'a2b'"),
        ({**UNPAIRED, "data__b": "mnistm:train"}, "name in config.eval.b the images to measure on"),
        ({**UNPAIRED, "data__a": "tfds:mnist/train"}, "'tfds:mnist/train': name in config.eval.a"),
        ({"accumulate": 0}, "config.accumulate is 0: it must be at least 1"),
        ({"on_collapse": "roll"}, "config.on_collapse is 'roll'. Did you mean 'rollback'"),
        ({"on_collapse": "rollback", "rollback__factor": 1.0}, "rollback.factor must be between 0"),
        ({"on_collapse": "rollback", "rollback__factor": 0.0}, "rollback.factor must be between 0"),
        ({"on_collapse": "rollback", "rollback__times": 0}, "times at least 1"),
        ({"on_collapse": "stop", "on_nonfinite": "skip"}, "on_collapse nothing to see: choose"),
        ({"penalty_every": 0}, "config.penalty_every is 0: it must be at least 1"),
    ],
)
def test_wrong_values(values, line):
    with pytest.raises(UserError, match=line) as error:
        configs.validate(with_values(**values))
    assert "\n" not in str(error.value)


def test_a_configs_own_arguments():
    """Each sets fields by dotted names; the hint for an unknown one knows them."""
    presets = {"cpu": {"batch_size": 16, "optimizer.lr": 0.1, "regularizers.lecam": 0.3}}
    config = configs.finish(configs.default(), "cpu", **presets)
    plain = configs.finish(configs.default(), "", **presets)
    assert (config.batch_size, config.optimizer.lr, config.regularizers.lecam) == (16, 0.1, 0.3)
    changed = configs.differences(plain.to_dict(), config.to_dict())
    assert len(changed) == 3 and plain == configs.finish(configs.default())
    assert configs.finish(configs.default(), "smoke", **presets).num_train_steps == 8
    with pytest.raises(UserError, match=r"Unknown config argument 'cpuu'\. Did you mean 'cpu'"):
        configs.finish(configs.default(), "cpuu", **presets)
    with pytest.raises(UserError, match=r"Unknown config argument 'smok'\. Did you mean 'smoke'"):
        configs.finish(configs.default(), "smok", **presets)


def test_a_run_from_before_there_was_accumulation():
    config = configs.default()
    for field in ("accumulate", "on_collapse", "rollback", "regularizers", "penalty_end"):
        del config[field]
    configs.validate(config)
    assert configs.differences(config.to_dict(), configs.default().to_dict()) == []


def batch(*fields, shape=(32, 32, 3)):
    return {field: np.zeros((2, *shape), np.float32) for field in fields}


def test_domains_tell_the_channels():
    for fields in (["a"], ["b"], ["a", "b"], ["image"]):
        config = configs.resolve(with_values(), batch(*fields))
        assert (config.channels, config.num_classes) == (3, 0)
    labelled = {**batch("a", "b"), "label": np.zeros(2, np.int32)}
    assert configs.resolve(with_values(num_classes=10), labelled).num_classes == 10
    with pytest.raises(UserError, match=r"Set config\.num_classes"):
        configs.resolve(with_values(), labelled)


def test_domains_of_another_size():
    with pytest.raises(UserError, match="hold 16x16x3 images as 'a', the config says 32x32x3"):
        configs.resolve(with_values(), batch("a", shape=(16, 16, 3)))
    with pytest.raises(UserError, match="hold 32x32x1 images as 'b', the config says 32x32x3"):
        configs.resolve(with_values(), batch("a") | batch("b", shape=(32, 32, 1)))


def test_a_run_from_before(tmp_path):
    """It continues, and its config has the fields that came later."""
    old = configs.default().to_dict()
    for field in ("a", "b", "swap", "load_size"):
        del old["data"][field]
    for field in ("a", "b", "paired", "direction"):
        del old["eval"][field]
    new = configs.default().to_dict()
    assert configs.differences(old, new) == []
    new["data"]["load_size"] = 36
    assert configs.differences(old, new) == ["data.load_size: 0 -> 36"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    read = configs.of_run(tmp_path)
    assert read.to_dict() == configs.default().to_dict()
