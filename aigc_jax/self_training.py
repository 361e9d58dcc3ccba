"""Train, generate, sift, train again: what becomes of a model that feeds on itself.

Trained on nothing but their own samples, generators lose first the rare and then everything (model
collapse: Shumailov et al. 2024, Alemohammad et al. 2024); with real images among them they need not
(Gerstgrasser et al. 2024). So the Frechet distance, recall and diversity are measured in every
generation, and their fall is told.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aigc_jax import exporting, runs, sampling, sifting, suite, train
from aigc_jax.data import configured, generated
from aigc_jax.errors import UserError
from aigc_jax.metrics import protocols
from aigc_jax.runs import Run
from aigc_jax.scoring import Seen, Viewer
from aigc_jax.writers import save_png, tile

RECORDS = "generations.json"
_FALL = 0.8  # of generation 0's recall or diversity, below which it is told
_COLUMNS = 16  # of the picture


@dataclasses.dataclass(frozen=True)
class Generation:
    """The samples of one generation beside the held-out real images.

    Attributes:
      fid: Frechet distance of the network's features.
      precision, recall, density, coverage: see `metrics.prdc`, k = 5.
      diversity: the variance of features within classes, or of all where there are none, over the
        real images'.
      classes: the same of each class.
      label_accuracy: how many are read as the class that was asked; None without classes.
      steps, n: of the training, and how many samples.
      dropped: how many samples each filter refused, of the data set that this was trained on.
    """

    number: int
    fid: float
    precision: float
    recall: float
    density: float
    coverage: float
    diversity: float
    classes: list[float]
    label_accuracy: float | None
    steps: int
    n: int
    dropped: dict[str, int]


def self_train(
    config: ConfigDict,
    workdir: str | Path,
    generations: int = 5,
    *,
    real: float = 0.0,
    num: int | None = None,
    keep: str = "",
    seed: int = 0,
) -> list[Generation]:
    """Trains on real images, then again and again on samples of the model before.

    `workdir` gets generation_N/, the runs; samples_N/, the data sets that these were trained on;
    generations.json, .png (curves) and samples.png (a row a generation). It continues where it was.

    Args:
      config: of generation 0; its `eval.extractor` measures all of them.
      generations: after that; each begins anew, with as many steps.
      real: the share of real images among the training images from generation 1 on.
      num: samples of a data set; None: as many as there are real images, at most 60,000.
      keep: filters of `sifting`, by which samples are chosen.
      seed: of the samples.

    Returns:
      a record for each generation, 0 and on.

    Raises:
      UserError: `real` out of range, unknown filters, a config that draws or measures nothing, a
        workdir of another loop.
    """
    workdir, told = Path(workdir), {"real": real, "num": num, "keep": keep, "seed": seed}
    _check(config, workdir, told)
    records: list[Generation] = []
    first: Run | None = None
    eyes: tuple[Viewer, Seen] | None = None
    for number in range(generations + 1):
        place, source = workdir / f"generation_{number}", workdir / f"samples_{number}"
        own = config if first is None else _fed(first, source, real)
        if int(train.run(own, place).step) < own.num_train_steps:
            raise SystemExit(0)  # it was told to stop
        run = runs.load(place)
        if first is None:
            first, viewer = run, sifting.viewer_of(run.config)
            eyes = viewer, sifting.real_images(run.config, viewer)
        record = _record(first, *eyes, run, number, generated.manifest(source) or {})
        records.append(record)
        _write(workdir, told, records)
        _say(records)
        if number < generations:
            _export(run, first, workdir / f"samples_{number + 1}", num, keep, seed + number)
    _picture(workdir, len(records))
    return records


def table(records: Sequence[Generation]) -> list[list[str]]:
    """A row for each generation, behind their names."""
    names = ["fid", "precision", "recall", "density", "coverage", "diversity", "label_accuracy"]
    rows = [["generation", *names]]
    for record in records:
        values = [getattr(record, name) for name in names]
        rows.append([f"{record.number}", *("" if v is None else f"{v:.3f}" for v in values)])
    return rows


def plot(curves: dict[str, Sequence[Generation]], path: Path) -> None:
    """Distance, recall and diversity by generation, a line for each loop."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    names = {"fid": "Frechet distance", "recall": "recall", "diversity": "diversity within classes"}
    for axis, (name, title) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for label, records in curves.items():
            numbers = [record.number for record in records]
            axis.plot(numbers, [getattr(record, name) for record in records], "o-", label=label)
        highest = max(getattr(record, name) for records in curves.values() for record in records)
        axis.set(title=title, xlabel="generation", ylim=(0, 1.1 * highest or 1))
        axis.xaxis.get_major_locator().set_params(integer=True)
        if len(curves) > 1:
            axis.legend()
    figure.savefig(path, dpi=110)


def load(workdir: str | Path) -> list[Generation]:
    """The records of a loop. UserError: there are none."""
    path = Path(workdir) / RECORDS
    try:
        told = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{workdir} holds no {RECORDS}: aigc selftrain writes one.") from None
    return [Generation(**record) for record in told["generations"]]


def _check(config: ConfigDict, workdir: Path, told: dict) -> None:
    if not 0 <= told["real"] < 1:
        raise UserError(f"--real {told['real']}: a share from 0 to below 1.")
    if config.data.mix or config.task not in ("label", "generate"):
        raise UserError(
            "aigc selftrain is for configs of one real source, of the tasks label and generate."
        )
    sifting.parse(told["keep"])
    sampling.check_seed(told["seed"])
    if not config.eval.extractor:
        raise UserError("Nothing would measure the samples: give --config.eval.extractor.")
    headers = config.copy_and_resolve_references()
    headers.data.cache_bytes = 0
    configured.held_out(headers)  # there are some
    path = workdir / RECORDS
    if path.is_file():
        before = json.loads(path.read_text())["settings"]
        changed = [f"{name} {before[name]!r}" for name in told if before.get(name) != told[name]]
        if changed:
            raise UserError(
                f"{workdir} holds a loop with {', '.join(changed)}: give the same, or another "
                "--workdir."
            )


def _fed(first: Run, source: Path, real: float) -> ConfigDict:
    """The first's config, but trained on what its successor drew."""
    config, place = first.config.copy_and_resolve_references(), f"generated:{source.absolute()}"
    config.eval.source = configured.held_out_source(config)
    if real:
        config.data.mix = ((config.data.source, real), (place, 1 - real))
    else:
        config.data.source = place
    return config


def _export(run: Run, first: Run, out: Path, num: int | None, keep: str, seed: int) -> None:
    told = generated.manifest(out)
    if told and told.get("complete"):
        return
    if out.exists():
        shutil.rmtree(out)  # half of ours
    if num is None:
        data = configured.dataset(first.config, first.config.data.split)
        num = min(data.num_examples, 60_000)
    exporting.export(run, out, num, form="tfds", seed=seed, keep=keep, real=first.config)


def _record(
    first: Run, viewer: Viewer, real: Seen, run: Run, number: int, manifest: dict
) -> Generation:
    count = min(real.n, first.config.eval.num_samples)
    images, labels = sampling.generate(run, count, seed=number)
    seen = viewer.see(sifting.of_arrays("samples", images, viewer, labels))
    settings = suite.Settings(protocols.find(first.config.eval.protocol))
    found = suite.score(["fid", "prdc"], real, seen, settings)
    accuracy = None
    if labels is not None and sifting.reads_labels(viewer, seen, first.config.num_classes):
        accuracy = float((seen.logits.argmax(-1) == labels).mean())
    whole, classes = _diversity(real, seen)
    overlap = {k: found["prdc"][k] for k in ("precision", "recall", "density", "coverage")}
    return Generation(
        number, found["fid"]["value"], **overlap, diversity=whole, classes=classes,
        label_accuracy=accuracy, steps=run.step, n=count, dropped=manifest.get("dropped", {}),
    )  # fmt: skip


def _diversity(real: Seen, fake: Seen) -> tuple[float, list[float]]:
    """The variance of features over the real images', and that of each class."""
    if real.labels is None or fake.labels is None:
        return float(fake.features.var(0).sum() / real.features.var(0).sum()), []
    spread = lambda seen, label: seen.features[seen.labels == label].var(0).sum()  # noqa: E731
    shares = [float(spread(fake, k) / spread(real, k)) for k in np.unique(real.labels)]
    return float(np.mean(shares)), shares


def _say(records: Sequence[Generation]) -> None:
    first, last = records[0], records[-1]
    tqdm.write(
        f"Generation {last.number}: distance {last.fid:.3g}, recall {last.recall:.3f}, diversity "
        f"{last.diversity:.3f}"
    )
    for name in ("recall", "diversity"):
        now, then = getattr(last, name), getattr(first, name)
        if now < _FALL * then:
            tqdm.write(
                f"Warning: {name} has fallen from {then:.3f} to {now:.3f}: the model is "
                "collapsing. Train on more real images: --real."
            )


def _write(workdir: Path, told: dict, records: Sequence[Generation]) -> None:
    plain = [dataclasses.asdict(record) for record in records]
    runs.write_json(workdir / RECORDS, {"settings": told, "generations": plain})
    plot({workdir.name: records}, workdir / "generations.png")


def _picture(workdir: Path, count: int) -> None:
    """The same latents in every generation."""
    rows = [
        sampling.generate(runs.load(workdir / f"generation_{i}"), _COLUMNS)[0] for i in range(count)
    ]
    save_png(tile(np.stack(rows)), workdir / "samples.png")
