"""The checks that turn a wrong config into a line."""

import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from aigc_jax.errors import UserError, did_you_mean

# Tasks with damaged images and their truth.
RESTORING = ("restore", "inpaint")


def validate(config: ConfigDict) -> None:
    """Raises UserError for values that no run can work with."""
    _one_of(config, "parallel", ("pmap", "jit", "fsdp"))
    _one_of(config, "dtype", ("float32", "bfloat16", "float16"))
    _one_of(config, "on_nonfinite", ("stop", "skip"))
    if config.ema.get("standing", 0) < 0:
        raise UserError(f"config.ema.standing is {config.ema.standing}: it must be at least 0.")
    _check_calming(config)
    fields = ("image_size", "batch_size", "num_train_steps", "d_steps", "steps_per_dispatch")
    counts = {field: config[field] for field in fields} | {
        "accumulate": config.get("accumulate", 1)
    }
    for field, count in (counts | {"eval.nll_samples": config.eval.nll_samples}).items():
        if count < 1:
            raise UserError(f"config.{field} is {count}: it must be at least 1.")
    _check_taught(config)
    _one_of(config, "eval.best_mode", ("min", "max"))
    _one_of(config, "eval.precision", ("highest", "high", "default"))
    _one_of(config, "eval.direction", ("a2b", "b2a"))
    _check_crop(config)
    _check_domains(config)
    if config.eval.num_samples < 2 or config.eval.batch_size < 1:
        raise UserError("config.eval.num_samples must be at least 2, eval.batch_size at least 1.")
    fields = ("log_every", "sample_every", "checkpoint_every")
    cadences = {field: config[field] for field in fields} | {"eval.every": config.eval.every}
    for field, every in cadences.items():
        if every < 0 or every % config.steps_per_dispatch:
            raise UserError(
                f"config.{field} is {every}: it must be a multiple of "
                f"steps_per_dispatch = {config.steps_per_dispatch} (0: never)."
            )


def _check_calming(config: ConfigDict) -> None:
    if config.get("on_collapse", "warn") == "warn":
        return
    _one_of(config, "on_collapse", ("warn", "stop", "rollback"))
    if not 0 < config.rollback.factor < 1 or config.rollback.times < 1:
        raise UserError("config.rollback.factor must be between 0 and 1, times at least 1.")
    if config.on_nonfinite == "skip":
        raise UserError(
            "config.on_nonfinite=skip leaves config.on_collapse nothing to see: choose."
        )


def _check_taught(config: ConfigDict) -> None:
    for name, value in config.get("conditioning", {}).items():
        if not 0 <= value <= (1 if name != "auxiliary" else math.inf):
            raise UserError(f"config.conditioning.{name} is {value}: it is out of range.")
    if config.get("penalty_every", 1) < 1:
        raise UserError(f"config.penalty_every is {config.penalty_every}: it must be at least 1.")


def _check_crop(config: ConfigDict) -> None:
    size = config.data.load_size
    if size and size < config.image_size:
        raise UserError(
            f"config.data.load_size is {size}: images are cropped from it to image_size = "
            f"{config.image_size}, so it must be at least that (0: no cropping)."
        )


def _check_domains(config: ConfigDict) -> None:
    """That sources, task and what is said about them go together."""
    domains = {f"{part}.{x}": config[part][x] for part in ("data", "eval") for x in "ab"}
    a, b, unpaired = config.data.a, config.data.b, config.task == "unpaired"
    if bool(a) != bool(b):
        given, missing = ("data.a", "data.b") if a else ("data.b", "data.a")
        raise UserError(
            f"config.{given} is {a or b!r} and config.{missing} is empty: give both domains, "
            "or neither."
        )
    if unpaired and not a:
        raise UserError("The task 'unpaired' needs two domains: set config.data.a and data.b.")
    named = [field for field, source in domains.items() if source]
    if named and not unpaired:
        raise UserError(
            f"config.{named[0]} is {domains[named[0]]!r}, a domain of the task 'unpaired', and "
            f"config.task is {config.task!r}: set config.task=unpaired, or leave the domain out."
        )
    if config.data.swap and config.task in ("generate", "label", "unpaired", *RESTORING):
        other = "exchange data.a and data.b" if unpaired else "leave it out"
        raise UserError(f"config.data.swap: the task {config.task!r} has no pairs: {other}.")
    for domain in "ab" if unpaired else "":
        if _names_split(config.data[domain]) and not config.eval[domain]:
            raise UserError(
                f"config.data.{domain} names its split, {config.data[domain]!r}: name in "
                f"config.eval.{domain} the images to measure on."
            )


def _names_split(source: str) -> bool:
    kind, _, place = source.partition(":")
    return (kind == "tfds" and "/" in place) or (kind == "mnistm" and bool(place))


def _one_of(config: ConfigDict, field: str, values: tuple[str, ...]) -> None:
    value = flat(config.to_dict())[field]
    if value not in values:
        raise UserError(f"config.{field} is {value!r}.{did_you_mean(value, values)}")


def flat(tree: Mapping, prefix: str = "") -> dict:
    """{dotted name: value} of every leaf of a config."""
    leaves = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        leaves.update(flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return leaves
