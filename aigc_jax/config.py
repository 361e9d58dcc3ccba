"""The shared defaults every config starts from; configs read, overridden and compared.

A config file defines `get_config(arg="")`, calls `default()`, sets what differs and returns it.
`--config=configs/x.py:smoke` passes the argument `smoke`: see `finish`.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from aigc_jax.config_checks import RESTORING, flat, validate
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.types import Batch

__all__ = [
    "FREE_FIELDS",
    "RESTORING",
    "default",
    "differences",
    "find",
    "finish",
    "from_json",
    "load",
    "of_run",
    "override",
    "resolve",
    "run_name",
    "validate",
]

# Fields that may change when a run is continued: they don't alter what a step computes (the
# number of steps does where a schedule spans them: see `differences`).
FREE_FIELDS = frozenset(
    [
        "num_train_steps",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "sample_every",
        "steps_per_dispatch",
        "parallel",
        "eval",
        "on_nonfinite",
        "rollback",
        "data.data_dir",
        "data.cache_bytes",
        "data.text.tokenizer",
    ]
)

# Fields that older runs have under other names.
_RENAMED = {"label_dropout": "conditioning.dropout"}


def default() -> ConfigDict:
    """The fields every config has, with values that suit a small run on any device."""
    return ConfigDict(
        {
            "method": "gan",  # aigc_jax.methods.<method>, or a dotted module name of your own
            "task": "label",  # what is in a batch: a function of aigc_jax.data.tasks
            "data": {
                # digits | tfds:NAME[/SPLIT] | folder:DIR | npz:FILE | generated:DIR |
                # pairs:DIR | mnistm[:SPLIT] | shapes[:N][,textured][/SPLIT]
                "source": "digits",
                # Sources in place of `source` for training, each with its share:
                # [("tfds:mnist", 0.5), ("generated:DIR", 0.5)].
                "mix": (),
                "a": "",  # sources of two unpaired domains, in place of `source`
                "b": "",
                "swap": False,  # exchange a and b of a task with pairs
                "data_dir": placeholder(str),  # where TFDS looks; default $AIGC_DATA_DIR/tfds
                "split": "train",
                "load_size": 0,  # read at this size and cropped at random; 0: not cropped
                "flip": False,  # mirror half of the images
                "turn": False,  # and turn them by 0, 90, 180 or 270 degrees
                "augment": "",  # e.g. "rotate(15),crop(0.8),color(0.2)"; see augment.kinds
                "degrade": "",  # of the task restore, e.g. "noise(0..55)"; see data.degrade
                "mask": "",  # of the task inpaint, e.g. "strokes|boxes"; see data.masks
                "text": {  # how captions are read: see data.text
                    # transformer, trained with the networks; minilm or clip, which are not
                    "encoder": "transformer",
                    "length": 32,  # most tokens of a caption
                    "tokenizer": "",  # a tokenizer.json; "": made of the captions
                    "weights": placeholder(str),  # of minilm or clip; None: the package's
                    "features": False,  # hand on their features of each token too
                },
                "cache_bytes": 2 << 30,  # sets that decode to less than this stay in memory
            },
            "image_size": 32,
            "channels": 0,  # 1 or 3; 0: as the source has
            "num_classes": -1,  # 0: unconditional; -1: as the source and the task have
            "vocabulary": 0,  # tokens of captions; as the source and data.text have
            "batch_size": 64,  # what one update of D sees, over all devices
            "num_train_steps": 1000,
            "d_steps": 1,  # D updates per G update
            "accumulate": 1,  # parts of a GAN's batch whose gradients are averaged: less memory
            "remat": False,  # a GAN's blocks are computed again for the gradient: less memory
            # What a GAN's discriminator sees, real and generated: policies of DiffAugment, such as
            # "color,translation,cutout", or "ada", which adapts its probability as `ada` says.
            "d_augment": "",
            "ada": {"target": 0.6, "kimg": 500.0, "every": 4, "p": 0.0},
            "augment": "",  # as data.augment, but inside the compiled step, on the device
            "steps_per_dispatch": 1,  # steps per compiled call (lax.scan): hides dispatch latency
            "seed": 0,
            "parallel": "pmap",  # pmap | jit | fsdp (jit with the parameters sharded)
            "dtype": "float32",  # of the computation; parameters and losses stay float32
            # half_life in images, 0: off; standing: batches to take batch norm's statistics from
            # when a GAN's averaged weights are used, 0: the running ones.
            "ema": {"half_life": 10_000.0, "ramp_up": 0.05, "standing": 0},
            "optimizer": {
                "name": "adam",  # adabelief | adam | adamw | lion | rmsprop | sgd, of optax
                "lr": 2e-4,
                "b1": 0.5,
                "b2": 0.999,
                "b2_end": placeholder(float),  # where b2 goes along half a cosine; None: it stays
                "eps": 1e-8,
                "weight_decay": 0.0,
                "schedule": "constant",  # constant | cosine | linear, down to `end`
                "end": 0.0,  # share of the rate that is left then
                "decay_steps": 0,  # when; 0: num_train_steps
                "warmup_steps": 0,
                "hold": 0.0,  # share of the steps before a cosine or linear decay begins
            },
            "conditioning": {  # how a condition is taught, by the methods gan and vae
                "mismatch": 0.0,  # share of wrong conditions among D's fakes
                "auxiliary": 0.0,  # weight of D's telling the condition, where it can
                "dropout": 0.0,  # share of conditions that say nothing, for guidance
            },
            "penalty_every": 1,  # steps between a GAN's penalties, each then weighing as many
            "penalty_end": 1.0,  # share of their weights left after optimizer.decay_steps
            "regularizers": {  # of a GAN; weights, 0: off. See methods.gan.Regularizers
                "lecam": 0.0,  # D's logits stay near (0.3)
                "lecam_decay": 0.99,
                "lecam_start": 1000,
                "consistency": 0.0,  # D's logits of real images, mirrored and moved: CR (10)
                "consistency_fake": 0.0,  # and of generated ones: bCR (10)
                "consistency_latent": 0.0,  # and of near latents: zCR (20)
                "latent_push": 0.5,
                "latent_noise": 0.05,
                "path_length": 0.0,  # of a generator with styles (2)
                "path_every": 4,
                "path_decay": 0.99,
                "orthogonal": 0.0,  # G's kernels (1e-4)
            },
            "frozen": {},  # name -> workdir of networks that are used and not trained
            "on_nonfinite": "stop",  # stop | skip (keep the old state for that step)
            # When a GAN collapses or diverges: warn | stop | rollback, to the last checkpoint
            # before the trouble with a smaller learning rate, `rollback.times` times a launch.
            "on_collapse": "warn",
            "rollback": {"factor": 0.5, "times": 3},
            "log_every": 50,
            "sample_every": 500,
            "checkpoint_every": 500,
            "keep_checkpoints": 3,
            "eval": {
                "every": 0,  # steps; 0: at the end only
                "split": "test",
                "source": "",  # held-out images; "": data.source at `split`
                "a": "",  # held-out images of the domains; "": data.a and data.b at `split`
                "b": "",
                "paired": False,  # image i of `a` and image i of `b` show one scene
                "direction": "a2b",  # a2b | b2a: the way that is measured
                "num_samples": 10_000,  # at most; as many real as generated
                "batch_size": 250,
                "nll_samples": 100,  # importance samples per image of a VAE's nll
                # The network that samples are measured through: inception, vgg16, a classifier's
                # workdir, or the name of a config, by which a classifier is then trained first, on
                # the run's own data. "": samples are not measured.
                "extractor": "",
                "metrics": "fid,label_accuracy",  # of samples; see aigc_jax.suite
                "protocol": "tf1",  # tf1 | pytorch_fid | clean | adm | stylegan
                "weights": placeholder(str),  # Inception's file; None: the cache, or downloaded
                "precision": "highest",  # highest | high | default, of Inception's products
                "extractor_batch_size": 0,  # images at once through it; 0: what suits it
                "best": "",  # the metric whose best checkpoint is kept too, e.g. "eval_fid"
                "best_mode": "min",
            },
        }
    )


def finish(config: ConfigDict, arg: str = "", **presets: Mapping[str, Any]) -> ConfigDict:
    """Applies a config's argument: "" leaves it, "smoke" makes it seconds long.

    Args:
      **presets: other arguments, each with the fields that it changes, by dotted names.

    Raises:
      UserError: any other argument.
    """
    if arg in presets:
        config.update_from_flattened_dict(presets[arg])
    elif arg == "smoke":
        for field in ("log_every", "sample_every", "checkpoint_every"):
            config[field] = 4
        config.num_train_steps = 8
        config.batch_size = 8
        config.steps_per_dispatch = min(config.steps_per_dispatch, 4)
        config.eval.nll_samples = 10
        config.eval.num_samples = 64
        config.eval.batch_size = 32
    elif arg:
        raise UserError(f"Unknown config argument {arg!r}.{did_you_mean(arg, ['smoke', *presets])}")
    for name in ("generator", "discriminator"):
        for field in ("lr", "b2") if name in config else ():
            if field not in config[name]:
                config[name][field] = placeholder(float)  # a network's own; None: the optimizer's
    if "generator" in config and "crf" not in config.generator:
        config.generator.crf = placeholder(str)  # None | mean_field | gaussian, on its output
    return config


def resolve(config: ConfigDict, batch: Batch) -> ConfigDict:
    """The config with what it leaves to the data (`channels`, `num_classes`) read off a batch.

    Raises:
      UserError: the images (`image`, `a` and `b`, or `target`) have another size; there are
        labels, of which a batch can't tell the number.
    """
    config = config.copy_and_resolve_references()
    if config.num_classes < 0 and "label" in batch:
        raise UserError("Set config.num_classes: a batch with labels doesn't tell how many.")
    config.num_classes = max(0, config.num_classes) if "label" in batch else 0
    for field in [field for field in ("image", "a", "b", "target") if field in batch]:
        shape, size = batch[field].shape[1:], config.image_size
        config.channels = config.channels or shape[-1]
        if shape != (size, size, config.channels):
            raise UserError(
                f"The batches hold {'x'.join(map(str, shape))} images{_called(field)}, the config "
                f"says {size}x{size}x{config.channels}: set config.image_size and config.channels."
            )
    return config


def _called(field: str) -> str:
    return "" if field == "image" else f" as {field!r}"


def find(name: str) -> Path:
    """The config file for `configs/x.py`, `x.py` or `x`: the path itself, else the shipped one.

    Raises:
      UserError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    folders = [Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"]
    stem, shipped = Path(name).stem, str(Path(name).parent) in (".", "configs")
    for folder in folders if shipped else ():
        if (folder / f"{stem}.py").is_file():
            return folder / f"{stem}.py"
    known = [path.stem for folder in folders for path in folder.glob("*.py")]
    raise UserError(f"No config file {name!r}.{did_you_mean(stem, known)}")


def load(name: str) -> ConfigDict:
    """The config of a file or a shipped config's name, with an optional `:argument`."""
    path, _, arg = name.partition(":")
    spec = importlib.util.spec_from_file_location("aigc_config", find(path))
    if spec is None:
        raise UserError(f"The config file {path!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"The config file {path!r} defines no get_config(arg).")
    return module.get_config(arg)


def run_name(name: str) -> str:
    """`x` for `configs/x.py`, `x_smoke` for `configs/x.py:smoke`."""
    path, _, arg = name.partition(":")
    return "_".join([Path(path).stem, *([arg] if arg else [])])


def override(config: ConfigDict, argv: list[str]) -> ConfigDict:
    """The config with `--config.field=value` flags applied, as ml_collections parses them.

    Raises:
      UserError: an unknown field or flag, or a value of the wrong type.
    """
    values, known = flags.FlagValues(), flat(config.to_dict())
    for arg in argv:
        name = arg.removeprefix("--config.").split("=")[0]
        if arg.startswith("--config.") and name not in known:
            raise UserError(f"Unknown config key {name!r}.{did_you_mean(name, known)}")
        field = arg.removeprefix("--").split("=")[0]
        if field in known:
            raise UserError(f"Unknown flag --{field}. Did you mean --config.{field}?")
    argv = ["aigc train", *argv]
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", config, lock_config=True, flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if rest:
        raise UserError(f"Unexpected argument {rest[0]!r}: fields are set by --config.field=value.")
    return holder.value or config


def from_json(text: str) -> ConfigDict:
    """The config that `ConfigDict.to_json_best_effort` wrote."""
    return ConfigDict(json.loads(text))


def of_run(workdir: str | Path) -> ConfigDict:
    """The config of a run's workdir; fields of `data` and `eval` newer than it have defaults.

    Raises:
      UserError: it is no run's workdir, or its config.json can't be read.
    """
    path, tokenizer = Path(workdir) / "config.json", Path(workdir) / "tokenizer.json"
    try:
        config = from_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{workdir} is not a run's workdir: it holds no config.json.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    for section in ("data", "eval"):
        fields = {**default()[section], **config.get(section, {})}
        if "mix" in fields:  # tuples are lists in a file
            fields["mix"] = tuple(map(tuple, fields["mix"]))
        config[section] = ConfigDict(fields)
    if tokenizer.is_file():
        config.data.text.tokenizer = str(tokenizer)
    return config


def differences(old: Mapping, new: Mapping) -> list[str]:
    """`field: old -> new` for every field that differs, except those free to change.

    A field that `old` hasn't, as it came later, has had its default all along.
    """
    old, new = flat(old), flat(new)
    old = {_RENAMED.get(name, name): value for name, value in old.items()}
    before = flat(default().to_dict())
    old |= {name: value for name, value in before.items() if name in new and name not in old}
    old, new = ({k: _listed(v) for k, v in side.items()} for side in (old, new))
    for side in (old, new):  # neither changes a step
        if side.get("on_collapse") == "stop":
            side["on_collapse"] = "warn"
    scheduled = not new.get("optimizer.decay_steps") and (
        new.get("optimizer.schedule", "constant") != "constant"
        or new.get("optimizer.b2_end") is not None
        or new.get("penalty_end", 1.0) != 1.0
    )
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted({**old, **new})
        if old.get(name) != new.get(name)
        and (not _is_free(name) or (scheduled and name == "num_train_steps"))
    ]


def _listed(value: Any) -> Any:
    """Tuples as a file has them."""
    return [_listed(x) for x in value] if isinstance(value, (list, tuple)) else value


def _is_free(name: str) -> bool:
    return name in FREE_FIELDS or name.split(".")[0] in FREE_FIELDS
