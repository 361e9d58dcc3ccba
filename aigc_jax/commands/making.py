"""The commands that make images: of latents, of labels, of other images."""

import argparse
from collections.abc import Callable
from pathlib import Path

from aigc_jax.commands.common import (
    KEEP_HELP,
    STEP_HELP,
    TILE_HELP,
    TRUNCATION_HELP,
    Runner,
    check_numbers,
)
from aigc_jax.errors import UserError

_KNOBS = ("truncation", "temperature", "top_k", "guidance")
_BY_CLASS = "of a conditional run, with --label or in subfolders named after its classes"
_PAIRS_HELP = "images are pairs a | b: translate the left half, or by --direction b2a the right"


def add_sample(parser: argparse.ArgumentParser) -> Runner:
    """generate images from a trained run"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add(
        "--out", default="samples.png", help="x.png (a grid), x.npz (uint8 NHWC, arr_0) or a folder"
    )
    add("--n", type=int, default=64, help="how many (default: 64)")
    add("--label", type=int, help="their class (default: each in turn)")
    add("--text", action="append", default=[], help="what they show; several: each in turn")
    add("--seed", type=int, default=0)
    add("--truncation", type=float, help=TRUNCATION_HELP)
    add("--temperature", type=float, help="of what is drawn; below 1: less variety")
    add("--top_k", type=int, help="draw each code from the k likeliest")
    add("--guidance", type=float, help="how much beyond its condition an image goes (none: 0)")
    add("--step", type=int, help=STEP_HELP)
    add("--as-dataset", metavar="DIR", help="in place of --out: a data set, and what made it")
    add("--format", default="folder", help="of --as-dataset: folder (default) or tfds")
    add("--per-class", action="store_true", help="--n of each class, of --as-dataset")
    add("--keep", default="", metavar="FILTERS", help=KEEP_HELP)
    return _sample


def _sample(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import runs, sampling

    if args.as_dataset:
        return _sample_dataset(args)
    if args.keep:
        raise UserError("--keep chooses the images of --as-dataset DIR: give that too.")
    config, knobs = _checked(args, lambda: sampling.check_out(args.out))
    sampling.check_texts(config, args.text)
    run = runs.load(args.workdir, args.step)
    asked = {"label": args.label, "text": args.text}
    images, labels = sampling.generate(run, args.n, seed=args.seed, **asked, **knobs)
    sampling.write(images, labels, args.out)
    print(f"{len(images)} images of step {run.step} in {args.out}")


def _checked(args: argparse.Namespace, check_out: Callable[[], None]) -> tuple:
    """The run's config and the knobs that were given, before anything is loaded."""
    from aigc_jax import config as configs
    from aigc_jax import methods, sampling

    check_numbers(args, n=1)
    knobs = {name: getattr(args, name) for name in _KNOBS if getattr(args, name) is not None}
    sampling.check_values(knobs)
    check_out()
    config = configs.of_run(args.workdir)
    sampling.check_draws(methods.load(config.method), knobs)
    sampling.class_labels(config, 1, args.label)
    return config, knobs


def _sample_dataset(args: argparse.Namespace) -> None:
    from aigc_jax import exporting, runs, sampling, sifting

    config, knobs = _checked(args, lambda: exporting.check_out(args.as_dataset))
    exporting.check(args.format, args.per_class, config.num_classes, args.label)
    sifting.parse(args.keep)
    sampling.check_texts(config, args.text)
    told = exporting.export(
        runs.load(args.workdir, args.step), args.as_dataset, args.n, form=args.format,
        per_class=args.per_class, label=args.label, text=args.text, seed=args.seed, keep=args.keep,
        **knobs,
    )  # fmt: skip
    source = f"--config.data.source=generated:{args.as_dataset}"
    where = f"{told['num_images']} images of step {told['step']} in {args.as_dataset}"
    if told["dropped"]:
        where += f" ({', '.join(f'{name} dropped {n}' for name, n in told['dropped'].items())})"
    print(f"{where}: train on them by {source}")


def add_reconstruct(parser: argparse.ArgumentParser) -> Runner:
    """encode and decode images by a run: each beside its reconstruction, PSNR and SSIM"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add("--input", required=True, metavar="PATH", help=f"a folder of images, or one; {_BY_CLASS}")
    add("--out", required=True, metavar="DIR", help="a new folder: PNGs, and scores.json")
    add("--label", type=int, help="the class of all of them")
    add("--step", type=int, help=STEP_HELP)
    return _reconstruct


def _reconstruct(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import latents

    print(latents.reconstruct(args.workdir, args.input, args.out, args.label, args.step).told())


def add_interpolate(parser: argparse.ArgumentParser) -> Runner:
    """a grid whose rows walk from one latent of a run to another"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add("--out", default="interpolation.png", metavar="FILE", help="x.png")
    add("--rows", type=int, default=8, help="walks (default: 8)")
    add("--columns", type=int, default=10, help="images of each, both ends included (default: 10)")
    add("--label", type=int, help="the class of all rows (default: each in turn)")
    add("--seed", type=int, default=0, help="of the latents, or of the choice of images")
    add("--input", metavar="DIR", help=f"walk between images of a folder; {_BY_CLASS}")
    add("--step", type=int, help=STEP_HELP)
    return _interpolate


def _interpolate(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import latents, sampling, writers

    check_numbers(args, rows=1, columns=2)
    if Path(args.out).suffix != ".png":
        raise UserError(f"--out {args.out}: end it in .png.")
    sampling.check_out(args.out)
    images = latents.interpolate(
        args.workdir, args.rows, args.columns, label=args.label, seed=args.seed,
        source=args.input, step=args.step,
    )  # fmt: skip
    writers.save_png(writers.tile(images), args.out)
    print(f"{args.rows} walks of {args.columns} images in {args.out}")


def add_translate(parser: argparse.ArgumentParser) -> Runner:
    """translate images of any size by a run, or by a published PyTorch generator's file"""
    add = parser.add_argument
    add("--workdir", help="of the run")
    add("--weights", metavar="FILE", help="in its place, x.pth: CycleGAN's, CUT's or pix2pix's")
    add("--input", required=True, metavar="PATH", help="images, or one; white where transparent")
    add("--out", required=True, metavar="DIR", help="a new folder: a PNG of each, of its size")
    add("--direction", help="a2b (default) or b2a")
    add("--label", type=int, help="the class to translate to, where the run knows classes")
    add("--pairs", action="store_true", help=_PAIRS_HELP)
    add("--tile", type=int, default=2048, metavar="N", help=TILE_HELP)
    add("--step", type=int, help=STEP_HELP)
    return _translate


def _translate(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import translation

    done = translation.translate(
        args.workdir, args.input, args.out, weights=args.weights, direction=args.direction,
        label=args.label, step=args.step, pairs=args.pairs, tile=args.tile,
    )  # fmt: skip
    print(done.told())
