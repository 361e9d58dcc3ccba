"""The judge of a run's samples: a classifier, or a probe of what captions ask.

It is trained before them, on the run's own data.
"""

import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax import networks
from aigc_jax.data import configured, sources

# Tasks whose batches hold a source's images, and those whose target is a source.
_OF_IMAGES, _TO_IMAGES = ("generate", "label"), ("colorize", "unpaired", *configs.RESTORING)


def find(config: ConfigDict, workdir: Path, labelled: bool) -> tuple[ConfigDict, ConfigDict | None]:
    """The config with `eval.extractor` a network's name, and the config of the judge to train.

    That is None where `eval.extractor` names no config, or nothing is labelled: the extractor is ""
    then. The judge of an unconditional run reads its source with the labels; that of a run that
    translates reads the domain it translates to. A judge whose config has another task than
    `label`, such as the probe of captioned shapes, reads the run's source by that.

    Args:
      config: of the run, resolved.
      workdir: of the run; its judge goes below it, in `judge`; that of domain a in `judge_a`.
      labelled: whether the source (of two, that of domain a) has classes.
    """
    name = config.eval.extractor
    if not name or networks.is_one(name):
        return config, None
    config, judge = config.copy_and_resolve_references(), configs.load(name)
    own, needs_labels = judge.copy_and_resolve_references(), judge.task == "label"
    for field in ("data", "task", "image_size", "channels", "num_classes", "parallel"):
        judge[field] = config[field]
    judge.data = config.data.copy_and_resolve_references()
    judge.data.swap, judge.eval.source = False, config.eval.source
    if config.task == "unpaired":
        labelled = _read_target(judge, config)
    if not needs_labels and _kind(config) == _kind(own):
        judge.task, judge.num_classes, judge.data.split = own.task, 0, own.data.split
    elif config.task in _TO_IMAGES:
        judge.task, judge.num_classes = "label", -1 if labelled else 0
    elif not config.num_classes and labelled and config.task in _OF_IMAGES:
        judge.task, judge.num_classes = "label", -1
    can_read = judge.num_classes != 0 if needs_labels else judge.task == own.task
    config.eval.extractor = str(workdir / _folder(config)) if can_read else ""
    devices = jax.device_count()
    judge.batch_size = math.ceil(judge.batch_size / devices) * devices
    return config, judge if can_read else None


def _kind(config: ConfigDict) -> str:
    return sources.parse(config.data.source)[0]


def _folder(config: ConfigDict) -> str:
    """Of two domains each has a judge of its own."""
    back = config.task == "unpaired" and config.eval.direction == "b2a"
    return "judge_a" if back else "judge"


def _read_target(judge: ConfigDict, config: ConfigDict) -> bool:
    """Gives the judge the target of two domains for its source; whether that has classes."""
    domain = "b" if config.eval.direction == "a2b" else "a"
    source, split = _apart(config.data[domain])
    held_out, held_out_split = _apart(config.eval[domain])
    judge.data.update(source=source, split=split or config.data.split, a="", b="", load_size=0)
    judge.eval.split = (held_out == source and held_out_split) or config.eval.split
    headers = judge.copy_and_resolve_references()
    headers.data.cache_bytes = 0  # nothing is decoded yet
    return configured.dataset(headers, judge.data.split).num_classes > 0


def _apart(source: str) -> tuple[str, str]:
    """A source without the split that it may name, which would win over every other, and that."""
    kind, _, place = source.partition(":")
    if kind == "mnistm":
        return "mnistm", place
    name, _, split = place.rpartition("/")
    return (f"tfds:{name}", split) if kind == "tfds" and name else (source, "")
