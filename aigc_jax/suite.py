"""The metrics by name: what each asks of the two sets of images, and the record it leaves.

fid           Frechet distance of the features, and its parts
fid_infinity  its extrapolation to infinitely many samples (Chong & Forsyth 2020)
sfid          the same of spatial features (protocol adm)
is            Inception score
kid           kernel distance
prdc          precision, recall, density, coverage
pr            improved precision and recall (Kynkaanniemi et al. 2019)
label_accuracy   samples that the network reads as the class they were asked to be
attributes    the share of what captions ask of shapes, colours, ... that a probe reads in samples
r_precision   how often a sample's own caption is the likeliest of a hundred, by that probe
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.metrics import attributes, fid, inception_score, kid, prdc, retrieval
from aigc_jax.metrics.protocols import PROTOCOLS, Protocol
from aigc_jax.scoring import Seen

Score = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How numbers are made of features.

    Attributes:
      protocol: the covariance's divisor and the rule of the Inception score.
      interval: whether the Frechet distance gets one, at the cost of 20 more distances.
    """

    protocol: Protocol = PROTOCOLS["tf1"]
    interval: bool = False


class Metric(NamedTuple):
    """A metric's function of (real, fake, settings), and the fields of `Seen` it needs."""

    score: Callable[[Seen | None, Seen, Settings], Score]
    of_real: str = ""
    of_fake: str = "features"


def check(names: Sequence[str], known: Sequence[str] = ()) -> None:
    """Raises UserError for a name that is neither a metric nor `known` of a method's own."""
    for name in names:
        if name not in METRICS and name not in known:
            raise UserError(f"Unknown metric {name!r}.{did_you_mean(name, [*METRICS, *known])}")


def score(
    names: Sequence[str], real: Seen | None, fake: Seen, settings: Settings
) -> dict[str, Score]:
    """{name: its record}, the value first.

    Raises:
      UserError: a metric needs what is not there: real images, single features, classes.
    """
    check_sides(names, real, fake)
    if real is not None and len(real.statistics.mu) != len(fake.statistics.mu):
        raise UserError(
            f"{real.name} has {len(real.statistics.mu)} features, {fake.name} "
            f"{len(fake.statistics.mu)}: they are of different networks."
        )
    return {name: METRICS[name].score(real, fake, settings) for name in names}


def check_names(names: Sequence[str], has_real: bool) -> None:
    """Raises UserError for an unknown metric, and one of real images where there are none."""
    check(names)
    for name in names:
        if METRICS[name].of_real and not has_real:
            raise UserError(f"{name} compares with real images: give --real.")


def check_sides(names: Sequence[str], real: Seen | None, fake: Seen | None = None) -> None:
    """Raises UserError for a metric that needs what the sides don't have; `fake` may come later."""
    check_names(names, real is not None)
    for name in names:
        metric = METRICS[name]
        for side, field in ((real, metric.of_real), (fake, metric.of_fake)):
            if side is not None and field and getattr(side, field) is None:
                raise UserError(f"{name}: {_MISSING[field].format(side.name)}")


_MISSING = {
    "features": "{} gives mean and covariance alone: name the images themselves.",
    "logits": "the network gives no classes for {}.",
    "labels": "{} has no labels, or the network reads others.",
    "statistics": "{} has no statistics.",
    "spatial": "{} has no spatial features: take --protocol adm.",
    "asked": "{} has no captions of shapes, or the network is no probe that reads them: give "
    "--extractor a probe's workdir (aigc train --config=shapes_probe trains one).",
}


def remarks(scores: Mapping[str, Score]) -> list[str]:
    """What is to be told beside records: a sentence each, none where all is well."""
    found = scores.get("fid")
    return fid.warnings_for(found["n_real"], found["n_fake"], found["dim"]) if found else []


def _sides(real: Seen, fake: Seen) -> Score:
    return {"n_real": real.n, "n_fake": fake.n}


def _fid(real: Seen, fake: Seen, settings: Settings) -> Score:
    x, y, ddof = real.features, fake.features, settings.protocol.ddof
    if x is not None and y is not None and min(len(x), len(y)) <= x.shape[1]:
        found = fid.frechet_from_features(x, y, ddof)  # exact below full rank
    else:
        found = fid.frechet(real.statistics, fake.statistics)
    record = {"value": found.value, **_sides(real, fake)}
    if settings.interval and y is not None:
        record["interval"] = fid.interval(y, real.statistics if x is None else x, ddof=ddof)
    record |= {"mean_part": found.mean_part, "covariance_part": found.covariance_part}
    return record | {"dim": len(fake.statistics.mu)}


def _fid_infinity(real: Seen, fake: Seen, settings: Settings) -> Score:
    ddof = settings.protocol.ddof
    found = fid.fid_infinity(fake.features, real.statistics, ddof=ddof)
    return {"value": found.value, "slope": found.slope, **_sides(real, fake)}


def _sfid(real: Seen, fake: Seen, settings: Settings) -> Score:
    value = fid.frechet(real.spatial, fake.spatial).value
    return {"value": value, **_sides(real, fake)}


def _inception_score(real: Seen | None, fake: Seen, settings: Settings) -> Score:
    rule = settings.protocol.inception_score_rule()
    found = inception_score.inception_score(fake.logits, **rule)
    return {"value": found.value, "std": found.std, "splits": len(found.splits), "n_fake": fake.n}


def _kid(real: Seen, fake: Seen, settings: Settings) -> Score:
    found = kid.kid(real.features, fake.features)
    record = {"value": found.value, "std": found.std, "subset_size": found.subset_size}
    if min(real.n, fake.n) > 2:
        # Of all pairs: the spread over subsets, which overlap, is no confidence interval.
        whole = kid.kid(real.features, fake.features, subsets=None)
        record |= {"all_pairs": whole.value, "interval": whole.interval()}
    return record | _sides(real, fake)


def _prdc(real: Seen, fake: Seen, settings: Settings) -> Score:
    return prdc.prdc(real.features, fake.features, k=5)._asdict() | {"k": 5} | _sides(real, fake)


def _pr(real: Seen, fake: Seen, settings: Settings) -> Score:
    found = prdc.precision_recall(real.features, fake.features, k=3)
    return found._asdict() | {"k": 3} | _sides(real, fake)


def _label_accuracy(real: Seen | None, fake: Seen, settings: Settings) -> Score:
    record = {"value": _right(fake)}
    if real is not None and real.logits is not None and real.labels is not None:
        record["real"] = _right(real)
    return record | {"n_fake": fake.n}


def _right(seen: Seen) -> float:
    return float((seen.logits.argmax(-1) == seen.labels).mean())


def _attributes(real: Seen, fake: Seen, settings: Settings) -> Score:
    found, of_real = (attributes.shares(seen.readings, seen.asked) for seen in (fake, real))
    return found | {"real": of_real} | _sides(real, fake)


def _r_precision(real: Seen, fake: Seen, settings: Settings) -> Score:
    found = retrieval.r_precision(fake.readings, fake.asked)
    of_real = retrieval.r_precision(real.readings, real.asked).value
    return found._asdict() | {"real": of_real} | _sides(real, fake)


METRICS = {
    "fid": Metric(_fid, of_real="statistics", of_fake="statistics"),
    "fid_infinity": Metric(_fid_infinity, of_real="statistics"),
    "sfid": Metric(_sfid, of_real="spatial", of_fake="spatial"),
    "is": Metric(_inception_score, of_fake="logits"),
    "kid": Metric(_kid, of_real="features"),
    "prdc": Metric(_prdc, of_real="features"),
    "pr": Metric(_pr, of_real="features"),
    "label_accuracy": Metric(_label_accuracy, of_fake="labels"),
    "attributes": Metric(_attributes, of_real="asked", of_fake="asked"),
    "r_precision": Metric(_r_precision, of_real="asked", of_fake="asked"),
}
