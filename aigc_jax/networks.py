"""The networks that metrics look through, by name."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from aigc_jax import runs
from aigc_jax.errors import UserError
from aigc_jax.metrics import inception, inception_weights, vgg_extractor
from aigc_jax.metrics.extractors import Extractor
from aigc_jax.metrics.protocols import Protocol


def load(
    name: str, weights: str | None, protocol: Protocol, precision: str = "highest"
) -> Extractor:
    """The network `name`.

    Args:
      name: "inception", "vgg16", the workdir of a classifier's run, or a dotted module of your own
        with `extractor(weights, protocol, precision) -> Extractor`.
      weights: its file; None: where it is looked for, see `inception_weights.load`.
      protocol: how images reach it.
      precision: of its products, "highest", "high" or "default"; Inception's alone.

    Raises:
      UserError: there is no such network, or its weights can't be read.
    """
    if name == "inception":
        return inception.extractor(inception_weights.load(weights), protocol, precision)
    if name == "vgg16":
        if weights is None:
            raise UserError(f"vgg16 needs --weights FILE: get {vgg_extractor.ADDRESS}.")
        return vgg_extractor.load(weights, precision)
    if Path(name).is_dir():
        return classifier(name)
    module = _module(name)
    if module:
        return module.extractor(weights, protocol, precision)
    raise UserError(
        f"No network {name!r} to look through: give inception, vgg16, or a classifier's workdir "
        "(aigc train --config=digits_classifier or mnist_classifier trains one)."
    )


def is_one(name: str) -> bool:
    """Whether `load` knows a network of that name."""
    return name in ("inception", "vgg16") or Path(name).is_dir() or _module(name) is not None


def _module(name: str) -> ModuleType | None:
    """A user's own module with an `extractor`; None where there is none of that name."""
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            return None
        raise UserError(f"The module {name} imports {error.name!r}, which isn't there.") from error
    return module if hasattr(module, "extractor") else None


def classifier(workdir: str | Path) -> Extractor:
    """A classifier, or a probe of attributes, trained by this library, as an extractor.

    Raises:
      UserError: the run is of another method.
    """
    run = runs.load(workdir)
    if not hasattr(run.method, "predict"):
        raise UserError(f"{workdir} is a run of {run.config.method!r}, not of a classifier.")
    kind = "probe" if run.config.task == "scene" else "classifier"

    def apply(state: Any, images: jax.Array) -> dict[str, jax.Array]:
        images = images.astype("float32") / 127.5 - 1
        found, features = run.method.predict(run.spec, state, images)
        told = {"readings": found.packed()} if kind == "probe" else {"logits": found}
        return {"features": features, **told}

    return Extractor(
        name=str(workdir),
        variables=run.state.replace(step=0, opt=None),  # what isn't read is no part of its hash
        apply=apply,
        channels=run.config.channels,
        size=(run.config.image_size, run.config.image_size),
        reads_labels=kind == "classifier",
        reads_asked=kind == "probe",
        batch_size=250,
        provenance={"extractor": kind, "weights": str(workdir)},
    )
