"""Augmented copies of image files, and of their masks: `aigc augment`."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aigc_jax import augment as augmentations
from aigc_jax import latents, sampling
from aigc_jax.augment import Chain
from aigc_jax.data import as_is, folders, pictures
from aigc_jax.data import augment as in_stream
from aigc_jax.data.pictures import Picture
from aigc_jax.errors import UserError
from aigc_jax.picture_files import PictureFiles
from aigc_jax.writers import save_png, tile

_ROWS, _COLUMNS, _SIDE = 8, 8, 96  # of the contact sheet


@dataclasses.dataclass(frozen=True)
class Augmented:
    """What `augment` did.

    Attributes:
      n: how many images are in `out`, of how many `files`.
      sheet: a picture of some of them.
      converted: how many there were of those that are no 8-bit images without transparency.
      skipped: the files that are no readable images.
    """

    n: int
    files: int
    out: str
    sheet: str
    converted: dict[str, int]
    skipped: list[str]

    def told(self) -> str:
        """In a line or a few."""
        line = f"{self.n} images of {self.files} in {self.out}: look at {self.sheet}"
        return "\n".join([line, *pictures.remarks(self.skipped, self.converted)])


def augment(
    source: str,
    out: str | Path,
    ops: str,
    n: int = 1,
    seed: int = 0,
    masks: str | None = None,
) -> Augmented:
    """Augments images of any size, each to n 8-bit PNGs at its path below `out`.

    They are called stem_0.png, stem_1.png, ...; stem.png with n = 1. Folders, and so classes, stay.

    Args:
      source: a folder or an image file.
      out: a new or empty folder.
      ops: of `augment.kinds`, "rotate(15),flip".
      masks: a folder of masks or label maps of the same names and sizes, which are moved with their
        images: the images go to `out`/images, and these to `out`/masks.

    Raises:
      UserError: ops that can't be read, or are none; no readable image; masks that are missing or
        of other sizes; `out` is taken.
    """
    chain = _parsed(ops)
    sampling.check_seed(seed)
    sampling.check_folder(out)
    out, bad, converted = Path(out), folders.Unreadable("", 0), Counter()
    others = _masks(source, masks) if masks else {}
    files = pictures.find(source)
    targets, rows, done = latents.targets(files), [], 0
    for number, file in enumerate(tqdm(files, "images", delay=2, leave=False, disable=None)):
        read = bad.attempt(as_is.read, file.path)
        if read is None:
            continue
        fields = {"image": np.repeat(read[0][None], n, 0)}
        if masks:
            if file.name not in others:
                continue
            fields["mask"] = np.repeat(as_is.read(others[file.name].path)[0][None], n, 0)
        seeds = np.stack([np.full(n, seed), number * n + np.arange(n)], 1)
        made = in_stream.arrays(chain, fields, seeds.astype(np.int32))
        converted.update(read[1])
        done += 1
        for name, folder in (("image", "images"), ("mask", "masks")) if masks else (("image", ""),):
            for i, each in enumerate(made[name]):
                save_png(each, _numbered(out / folder / targets[file], i, n))
        if len(rows) < _ROWS:
            rows.append([read[0], *made["image"][: _COLUMNS - 1]])
    if not done:
        raise UserError(f"--input {source}: {len(files)} image files, and none can be read.")
    sheet = out.with_name(f"{out.name}_contact_sheet.png")  # beside it: inside it would be data
    save_png(tile(_sheet(rows)), sheet)
    skipped = sorted(map(str, bad.files))
    return Augmented(done * n, done, str(out), str(sheet), dict(converted), skipped)


def _parsed(ops: str) -> Chain:
    try:
        chain = augmentations.parse(ops)
    except UserError as error:
        raise UserError(f"--ops: {error}") from None
    if not chain.steps:
        raise UserError('--ops is empty: give some, e.g. "rotate(15),flip,crop(0.8),color(0.2)".')
    return chain


def _masks(source: str, masks: str) -> dict[str, Picture]:
    images = PictureFiles(source)
    pairs = images.partners(PictureFiles(masks, "--masks"))
    return {file.name: other for file, other in pairs.items()}


def _numbered(path: Path, i: int, n: int) -> Path:
    return path if n == 1 else path.with_name(f"{path.stem}_{i:0{len(str(n - 1))}d}{path.suffix}")


def _sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """(rows, columns, S, S, 3): the original first, each fitted into a square."""
    from PIL import Image

    def square(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        if max(picture.size) < _SIDE:  # small ones in whole pixels
            scale = _SIDE // max(picture.size)
            size = tuple(scale * n for n in picture.size)
            picture = picture.resize(size, Image.Resampling.NEAREST)
        ground = Image.new("RGB", (_SIDE, _SIDE), "white")
        ground.paste(picture, tuple((_SIDE - n) // 2 for n in picture.size))
        return np.asarray(ground)

    return np.stack([np.stack([square(image) for image in row]) for row in rows])
