"""Networks, one family a file, pure Linen. `build` makes one from a config's section."""

import dataclasses
import sys
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from aigc_jax import plugins
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.models import crf_generator

# What a network's section of a config holds besides the network's own fields.
OF_OPTIMIZERS = ("name", "lr", "b2")


def build(config: ConfigDict, role: str, **common: Any) -> nn.Module:
    """The module `role` of the family `config.name`, e.g. "Generator" of "dcgan".

    Args:
      config: `name` (a file of aigc_jax.models, or a dotted module of your own) and the module's
        fields; a Generator's may have `crf`, see `crf_generator.around`.
      role: the class in that file.
      **common: what every network is offered (image_size, dtype, ...); it gets what it declares.
        Generators of label maps are told of `segments` labels, and have as many channels.

    Raises:
      UserError: an unknown family or field.
    """
    fields = {key: value for key, value in config.items() if key not in OF_OPTIMIZERS}
    if role != "Generator":
        return _module(config.name, role, fields, common)
    crf = {key: fields.pop(key) for key in list(fields) if key.partition("_")[0] == "crf"}
    if common.get("segments"):
        common = common | {"channels": common["segments"]}
    return crf_generator.around(_module(config.name, role, fields, common), crf, common)


def knows(config: ConfigDict, role: str, field: str) -> bool:
    """Whether the module `role` of the family `config.name` has that field."""
    module = plugins.find(sys.modules[__name__], "model", config.name)
    return field in {each.name for each in dataclasses.fields(getattr(module, role))}


def _module(family: str, role: str, fields: dict[str, Any], common: dict[str, Any]) -> nn.Module:
    module = plugins.find(sys.modules[__name__], "model", family)
    if not hasattr(module, role):
        raise UserError(f"Model {family!r} has no {role}.")
    cls = getattr(module, role)
    for key in ("width", "chunk", "latent_dim", "w_dim"):
        if isinstance(fields.get(key, 1), int) and fields.get(key, 1) < 1:
            raise UserError(f"{role} {family!r} has a {key} of {fields[key]}: take at least 1.")
    known = {field.name for field in dataclasses.fields(cls)} - {"parent", "name"}
    for key in fields.keys() - known:
        raise UserError(f"{role} {family!r} has no field {key!r}.{did_you_mean(key, known)}")
    return cls(**{key: value for key, value in common.items() if key in known} | fields)


def changed(module: nn.Module, **fields: Any) -> nn.Module | None:
    """The network, or what it wraps as `generator`, with other values of its fields.

    None where neither has them all.
    """
    # Not `hasattr`: a wrapper has properties that are its generator's fields.
    if fields.keys() <= {field.name for field in dataclasses.fields(module)}:
        return module.clone(**fields)
    inner = getattr(module, "generator", None)
    inner = None if inner is None else changed(inner, **fields)
    return None if inner is None else module.clone(generator=inner)


def multiple(module: nn.Module) -> int:
    """Of which the sizes of images are multiples that a translating network takes: its file's say.

    1 where its file has no `multiple(module)`.
    """
    if isinstance(module, crf_generator.CRFGenerator):
        module = module.generator
    say = getattr(sys.modules[type(module).__module__], "multiple", None)
    return say(module) if say else 1
