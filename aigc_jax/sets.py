"""Sets of images by path, or made on the way, as a network sees them."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from aigc_jax import runs
from aigc_jax.data import configured, images, pixels
from aigc_jax.errors import UserError
from aigc_jax.metrics import statistics
from aigc_jax.sampling import Sampler, check_draws, class_labels, in_turn
from aigc_jax.scoring import Seen, Viewer
from aigc_jax.types import Batch


@dataclasses.dataclass
class Filled:
    """Images, see `scoring.Images`, that a function makes of batches."""

    name: str
    n: int
    size: tuple[int, int]
    channels: int
    fields: Callable[[], Iterator[Batch]]
    image: Callable[[Batch], np.ndarray]
    labels: list[np.ndarray] = dataclasses.field(default_factory=list)
    asked: list[np.ndarray] = dataclasses.field(default_factory=list)

    def batches(
        self, batch_size: int, transform: Callable | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of their own size, uint8 or transformed; nothing in them is masked."""
        self.labels, self.asked = [], []
        with ThreadPoolExecutor() as pool:
            for batch in self.fields():
                valid = np.asarray(batch["valid"]) > 0
                for field, told in (("label", self.labels), ("asked", self.asked)):
                    if field in batch:
                        told.append(np.asarray(batch[field])[valid])
                made = pixels.convert(self.image(batch)[valid], self.channels)
                if transform:
                    made = np.stack(list(pool.map(transform, made)))
                yield made, np.ones(len(made), np.float32)


def see(path: str, viewer: Viewer, num: int | None = None, seed: int = 0) -> Seen:
    """What the network sees of a folder, zip or npz of images, a TFDS split, a run or statistics.

    Args:
      num: so many at most, drawn alike each time; of a run, so many samples (default 10,000).
      seed: of a run's samples.

    Raises:
      UserError: nothing to be read there; statistics made in another way than the viewer's.
    """
    if runs.is_run(path):
        return _see_run(runs.load(path), viewer, num, seed)
    if images.is_statistics(path):
        return _see_statistics(path, viewer)
    return viewer.see(images.open_images(path, channels=viewer.extractor.channels, num=num))


def _see_run(run: runs.Run, viewer: Viewer, num: int | None, seed: int) -> Seen:
    check_draws(run.method)
    if configured.reads_captions(run.config):
        raise UserError(
            f"{run.workdir} draws what captions say: aigc evaluate --fake {run.workdir} gives it "
            "those that are held out."
        )
    n = num or run.config.eval.num_samples
    sampler = Sampler(run.method, run.spec)
    state, rng = sampler.layout.place_state(run.state), jax.random.key(seed)
    labels = class_labels(run.config, n)
    fields = {} if labels is None else {"label": labels}
    batches = functools.partial(in_turn, n, fields, 256)
    size = (run.config.image_size,) * 2
    sample = functools.partial(sampler, state, rng)
    name = f"{run.workdir} step {run.step}"
    return viewer.see(Filled(name, n, size, viewer.extractor.channels, batches, sample))


def _see_statistics(path: str, viewer: Viewer) -> Seen:
    place = Path(path.removeprefix("npz:")).expanduser()
    found, wanted = statistics.load(place), viewer.provenance
    if not found.meta:
        logging.warning("%s doesn't tell its protocol: taken to be as the other side's.", path)
    for key in ("extractor", "sha256", "protocol", "precision"):
        here, there = wanted.get(key), found.meta.get(key)
        if here and there and here != there:
            raise UserError(
                f"{path} was made with {key} {there}, this would be {here}: numbers of the two "
                f"can't be compared. Make it again (aigc stats), or measure as it was."
            )
    return Seen(f"{path}", found)


def check_readable(path: str, num: int | None = None) -> None:
    """Raises UserError, before a network is fetched, for what `see` could not read."""
    if runs.is_run(path) or images.is_statistics(path):
        return
    images.open_images(path, num=num)
    below = sorted(p.parent.name for p in Path(path).glob("*/config.json"))
    if below:
        raise UserError(f"{path} is no run but holds some: name one, such as {path}/{below[0]}.")
