"""Every shipped config says its command, has the shared fields, and runs to the end as `:smoke`."""

import ast
import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax import cli, methods
from aigc_jax import config as configs
from aigc_jax.errors import UserError
from aigc_jax.writers import read_metrics

pytestmark = pytest.mark.usefixtures("compiled_once")

IS_PREPARED = "AIGC_DATA_DIR" in os.environ
PATHS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
SHARED = """
method task data.source data.data_dir image_size batch_size num_train_steps d_steps seed
steps_per_dispatch parallel dtype ema frozen on_nonfinite checkpoint_every log_every sample_every
eval.every eval.split eval.num_samples eval.extractor eval.best
""".split()  # noqa: SIM905

each_config = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def has(config, name):
    try:
        functools.reduce(lambda section, key: section[key], name.split("."), config)
    except KeyError:
        return False
    return True


def numbers(tree, prefix=""):
    """{dotted name: value} of every leaf of a config."""
    leaves = {}
    for key, value in tree.items():
        deeper = hasattr(value, "items")
        leaves |= numbers(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return leaves


def test_there_are_some():
    assert {"digits_dcgan", "digits_classifier", "mnist_dcgan"} <= {path.stem for path in PATHS}


@each_config
def test_docstring_has_the_command(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    commands = [
        line.split() for line in docstring.splitlines() if line.strip().startswith("aigc train")
    ]
    assert commands
    first = commands[: 2 if "frozen." in docstring else 1]
    named = [p.partition("=")[2] for parts in first for p in parts if p.startswith("--config=")]
    # The default config needs no name; a second stage names its first before it.
    stems = [configs.find(name).stem for name in named or ["digits_dcgan"]]
    assert stems[-1] == path.stem


@each_config
def test_has_the_shared_fields(path):
    config = configs.load(str(path))
    assert not [name for name in SHARED if not has(config, name)]
    networks = [
        ("model",),
        ("generator", "discriminator"),
        ("generator", "adversary.discriminator"),
        ("encoder", "decoder"),
    ]
    assert any(all(has(config, f"{name}.name") for name in names) for names in networks)
    configs.validate(config)


@each_config
def test_smoke_is_shorter_and_otherwise_the_same(path):
    config, smoke = configs.load(str(path)), configs.load(f"{path}:smoke")
    assert smoke.num_train_steps < config.num_train_steps
    a, b = numbers(config), numbers(smoke)
    assert a.keys() == b.keys()
    changed = {name for name in a if a[name] != b[name]}
    sizes = {"batch_size", "num_train_steps", "log_every", "sample_every", "checkpoint_every"}
    of_eval = {"eval.num_samples", "eval.batch_size", "eval.extractor", "eval.nll_samples"}
    assert changed <= sizes | of_eval | {"steps_per_dispatch", "adversary.start"}


@each_config
def test_unknown_argument(path):
    with pytest.raises(UserError, match=r"'smoek'. Did you mean 'smoke'"):
        configs.load(f"{path}:smoek")


def train(path, workdir, *flags):
    """Trains a config's smoke: narrower, as it is compiling that takes the time, and of 16x16."""
    config = configs.load(f"{path}:smoke")
    narrow = {".width": 4, ".block_width": 4, ".heads": 2, ".blocks": 1, "model.depth": 3}
    narrow |= {".w_dim": 8, ".mapping_layers": 1}
    if path.stem.endswith("r3gan"):
        narrow[".width"] = 8  # a group of its convolutions
    narrow = [
        f"--config.{name}={value}"
        for name, old in numbers(config).items()
        for end, value in narrow.items()
        if name.endswith(end) and not isinstance(old, str)
    ]
    flags = [f"--workdir={workdir}", "--config.image_size=16", *narrow, *flags]
    assert cli.main(["train", f"--config={path}:smoke", *flags]) == 0
    return config


def small_data(config, folder):
    """Flags for a little of each set; folders of noise for those that are to be downloaded."""
    folders = config.data.source.startswith("folder:")
    if config.task not in ("unpaired", "pairs") and not folders:
        if config.data.source.startswith("tfds:"):
            return ["--config.data.split=train[:512]", "--config.eval.split=test[:64]"]
        return ["--config.eval.split=test[:64]"] * config.data.source.startswith("shapes")
    if config.data.a.startswith("mnistm"):
        cut = {"data": "train[:200]", "eval": "test[:64]"}
        kinds = {"a": "mnistm:", "b": "tfds:mnist/"}
        return [f"--config.{s}.{d}={kinds[d]}{cut[s]}" for s in cut for d in "ab"]
    rng = np.random.default_rng(0)
    for name in ("train", "test", "trainA", "trainB", "testA", "testB"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(3):
            noise = rng.integers(0, 256, (40, 80 if config.task == "pairs" else 40, 3), np.uint8)
            Image.fromarray(noise).save(folder / "images" / name / f"{i}.png")
    flags = ["--config.image_size=32", "--config.data.load_size=36", "--config.eval.extractor="]
    if config.task == "pairs":
        return [*flags, f"--config.data.source=pairs:{folder}/images"]
    if folders:
        places = {"data.source": "trainA", "eval.source": "testA"}
        return flags + [f"--config.{k}=folder:{folder}/images/{v}" for k, v in places.items()]
    places = {"data.a": "trainA", "data.b": "trainB", "eval.a": "testA", "eval.b": "testB"}
    return flags + [f"--config.{k}=folder:{folder}/images/{v}" for k, v in places.items()]


@pytest.fixture(scope="session")
def trained():
    """{a config's name: where a test has trained it}; those after it take it as it is."""
    return {}


# Of the networks of cifar10_sngan, which runs always.
SLOW = {"cifar10_sagan", "cifar10_wgan_gp"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in PATHS
    ],
)
def test_smoke_runs(path, tmp_path, trained):
    """All of it: steps, pictures, checkpoints, evaluation."""
    config = configs.load(f"{path}:smoke")
    workdir, flags = tmp_path / "run", small_data(config, tmp_path)
    sources = config.data.source, *flags
    if any("tfds:" in x or "mnistm:" in x for x in sources) and not IS_PREPARED:
        pytest.skip("$AIGC_DATA_DIR, where prepared TFDS sets lie, is not set")
    codes = "shapes_vqvae" if config.data.source.startswith("shapes") else "cifar10_vqvae"
    for name, first in (("autoencoder", codes), ("perceptual", "cifar10_classifier")):
        if name in config.frozen:
            if first not in trained:
                train(configs.find(first), tmp_path / first, *small_data(config, tmp_path))
                trained[first] = tmp_path / first
            flags.append(f"--config.frozen.{name}={trained[first]}")
    # That of a translation's is trained on the target's images alone.
    judge = config.eval.extractor, config.task == "unpaired"
    if judge in trained:
        flags.append(f"--config.eval.extractor={trained[judge]}")
    train(path, workdir, *flags)
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert config.num_train_steps in steps and len(steps) > 1
    rows = read_metrics(workdir)
    assert rows[-1]["step"] == config.num_train_steps
    assert all(value == value for row in rows for value in row.values())
    assert (workdir / "losses.png").stat().st_size > 5000
    judges = {"classifier": "eval_accuracy", "detector": "eval_all"}
    if config.method in judges:
        assert judges[config.method] in rows[-1]
        return
    assert len(list((workdir / "samples").glob("*.png"))) > 1
    if config.eval.extractor not in ("", "inception") and hasattr(
        methods.load(config.method), "sample"
    ):
        assert rows[-1]["eval_fid"] > 0
        if judge not in trained:
            assert (workdir / "judge" / "config.json").exists()
            trained[judge] = workdir / "judge"
        if config.task == "label":
            assert 0 <= rows[-1]["eval_label_accuracy"] <= 1


def test_find(tmp_path, monkeypatch):
    """A path, a name with or without .py, from anywhere; an own file goes before a shipped one."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits_dcgan", "digits_dcgan.py", "configs/digits_dcgan.py"):
        assert configs.find(name).samefile(PATHS[0].parent / "digits_dcgan.py")
    Path("digits_dcgan.py").write_text("def get_config(arg):\n    return 1\n")
    assert configs.load("digits_dcgan.py") == 1


@pytest.mark.parametrize(
    "name, text, says",
    [("notes.md", "# notes", "not a Python file"), ("x.py", "x = 1", r"no get_config")],
)
def test_not_a_config(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        configs.load(str(tmp_path / name))


def test_override_reads_every_type():
    flags = ["batch_size=32", "optimizer.lr=1e-3", "data.flip=true", "data.data_dir=/x", "loss=a=b"]
    config = configs.override(configs.load("digits_dcgan"), [f"--config.{f}" for f in flags])
    assert (config.batch_size, config.optimizer.lr, config.data.flip) == (32, 1e-3, True)
    assert (config.data.data_dir, config.loss) == ("/x", "a=b")


def test_differences_leave_out_what_is_free():
    old, new = (configs.load("digits_dcgan").to_dict() for _ in range(2))
    new["num_train_steps"], new["eval"]["every"], new["data"]["data_dir"] = 1, 7, "/x"
    assert configs.differences(old, new) == []
    new["optimizer"]["lr"], new["loss"] = 1.0, "hinge"
    assert configs.differences(old, new) == [
        "loss: 'non_saturating' -> 'hinge'",
        f"optimizer.lr: {old['optimizer']['lr']} -> 1.0",
    ]


def test_an_older_run_is_of_the_same_config():
    """Fields that came later have had their defaults all along, and some other names."""
    config = configs.load("digits_dcgan")
    old = json.loads(config.to_json_best_effort())
    for name in ("augment", "d_augment", "ada", "conditioning"):
        del old[name]
    for name in ("mix", "augment", "text"):
        del old["data"][name]
    new = json.loads(config.to_json_best_effort())
    assert configs.differences(old, new) == []
    new["augment"] = "flip"
    assert configs.differences(old, new) == ["augment: '' -> 'flip'"]
    old["label_dropout"], new["augment"], new["conditioning"]["dropout"] = 0.1, "", 0.1
    assert configs.differences(old, new) == []


def test_a_config_comes_back_from_its_json():
    config = configs.load("digits_dcgan")
    again = configs.from_json(config.to_json_best_effort())
    assert configs.differences(config.to_dict(), again.to_dict()) == []
    assert len(jax.tree.leaves(again.to_dict())) == len(jax.tree.leaves(config.to_dict()))


FAMILY = ("dcgan", "wgan_gp", "sngan", "sagan", "biggan", "stylegan2", "r3gan")
PRESETS = [(name, preset) for name in FAMILY for preset in ("", "mnist")]


@pytest.mark.parametrize(("name", "preset"), [*PRESETS, ("dcgan", "cpu"), ("r3gan", "hour")])
def test_the_family_and_its_presets_can_be_built(name, preset):
    """Networks, optimizers and regularizers, to the state's shapes; nothing is computed."""
    config = configs.load(f"cifar10_{name}" + (f":{preset}" if preset else ""))
    configs.validate(config)
    config.channels = 1 if preset == "mnist" else 3
    config.num_classes = 0 if config.task == "generate" else 10
    method = methods.load(config.method)
    spec = method.from_config(config)
    size = (2, 32, 32, config.channels)
    batch = {"image": np.zeros(size, np.float32), "label": np.zeros(2, np.int32)}
    state = jax.eval_shape(functools.partial(method.init_state, spec), jax.random.key(0), batch)
    images = jax.eval_shape(
        functools.partial(method.sample, spec), state, jax.random.key(0), {"index": np.arange(2)}
    )
    assert images.shape == size


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_scales_with_the_image(name):
    config = configs.load(f"cifar10_{name}")
    method = methods.load(config.method)
    config.channels, config.num_classes = 3, 0 if config.task == "generate" else 10
    for size in (64, 128, 256):
        config.image_size = size
        spec = method.from_config(config)
        shape = (2, size, size, 3)
        batch = {"image": np.zeros(shape, np.float32), "label": np.zeros(2, np.int32)}
        init = functools.partial(method.init_state, spec)
        state = jax.eval_shape(init, jax.random.key(0), batch)
        told = {"index": np.arange(2)}
        draw = functools.partial(method.sample, spec)
        assert jax.eval_shape(draw, state, jax.random.key(0), told).shape == shape
