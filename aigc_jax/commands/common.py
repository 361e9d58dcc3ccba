"""What several commands share: help, and checks of what a user gave."""

import argparse
from collections.abc import Callable
from pathlib import Path

from aigc_jax.errors import UserError

# What a command does with its arguments, and with those that argparse doesn't know.
Runner = Callable[[argparse.Namespace, list[str]], None]

TRUNCATION_HELP = (
    "latents within +- this, or of stylegan2 styles so far from their mean, 1 all the way: "
    "less variety, more quality"
)
STEP_HELP = "of the checkpoint (default: the newest)"
KEEP_HELP = (
    "keep those that pass: confidence(p) of the judge in the label that was asked, realism(r), "
    "copies(share): of training images, dropped; such as 'confidence(0.9),copies(0.5)'"
)
TILE_HELP = "pixels a side above which an image goes through in tiles (default: 2048)"


def check_numbers(args: argparse.Namespace, **leasts: int) -> None:
    """UserError for a number that was given and is below the least it may be."""
    for name, least in leasts.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: it must be at least {least}.")


def check_parent(flag: str, path: str | None) -> None:
    """UserError where no file can be written, as it is a folder or lies in none."""
    if path and not Path(path).parent.is_dir():
        raise UserError(f"{flag} {path}: make the folder {Path(path).parent} first.")
    if path and Path(path).is_dir():
        raise UserError(f"{flag} {path} is a folder: name a file.")
