"""The command line: parses, calls, prints."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import absl.logging

from aigc_jax import __version__
from aigc_jax.errors import UserError

_EPILOG = """\
start here:
  aigc train                                    a GAN on handwritten digits: two minutes on a CPU
  aigc sample --workdir runs/digits_dcgan --label 3 --n 64 --out threes.png
  aigc interpolate --workdir runs/digits_dcgan  walks between its latents
  aigc evaluate --fake runs/digits_dcgan        its samples, as a classifier reads them
  aigc evaluate --real photos --fake samples --metrics fid,kid      any two folders, by Inception
  aigc translate --weights latest_net_G_A.pth --input horses --out zebras      published weights
"""

_TRAIN_EPILOG = """\
Any field of the config is a flag:
  aigc train --config=configs/mnist_dcgan.py --config.batch_size=128 --config.optimizer.lr=1e-4
  aigc train --config=configs/mnist_dcgan.py:smoke    the same, seconds long
  aigc train --workdir=runs/photos --config.data.source=folder:photos --config.task=generate
The source is digits, tfds:NAME[/SPLIT], folder:DIR or npz:FILE.

Launched again with the same workdir, a run continues. On several machines, start the same command
on each: with --distributed under Slurm or on a Cloud TPU pod, else with the three flags.
"""


class _Parser(argparse.ArgumentParser):
    """Tells mistakes in one line, as everything else here does, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 for a user's mistake, told in one line."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.verb is None:
        parser.print_help()
        return 0
    if rest and args.verb != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # What Orbax raises it also logs, with tracebacks.
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax and clu tell of their own affairs
    try:
        args.run(args, rest)
    except UserError as error:
        sys.stderr.write(f"aigc {args.verb}: {error}\n")  # one write: threads can't split it
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the last checkpoint stays.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    keep = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "aigc",
        description="Train and measure image generators in JAX.",
        epilog=_EPILOG,
        formatter_class=keep,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", title="commands", metavar="<command>")
    commands = {
        "train": _add_train,
        "sample": _add_sample,
        "reconstruct": _add_reconstruct,
        "interpolate": _add_interpolate,
        "translate": _add_translate,
        "evaluate": _add_evaluate,
        "stats": _add_stats,
        "compare": _add_compare,
        "selfcheck": _add_selfcheck,
    }
    for name, add in commands.items():
        help_text, epilog = add.__doc__, _TRAIN_EPILOG if name == "train" else None
        verb = verbs.add_parser(
            name, help=help_text, description=help_text, epilog=epilog, formatter_class=keep,
            allow_abbrev=False,
        )  # fmt: skip
        verb.set_defaults(run=add(verb))
    return parser


def _add_train(parser: argparse.ArgumentParser):  # noqa: ANN202
    """train what a config says, or continue in its workdir"""
    add = parser.add_argument
    add("--config", default="digits_dcgan", help="a config file or a shipped config's name")
    add("--workdir", help="where all goes (default: runs/<config's name>)")
    add(
        "--distributed", action="store_true", help="join the processes that Slurm or a pod tells of"
    )
    add("--coordinator", help="host:port of process 0")
    add("--num_processes", type=int)
    add("--process_id", type=int)
    return _train


def _train(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import config as configs

    config = configs.override(configs.load(args.config), rest)
    if "://" in (args.workdir or ""):
        raise UserError(
            f"--workdir {args.workdir}: give a folder; mount the bucket to write there."
        )
    workdir = Path(args.workdir or f"runs/{configs.run_name(args.config)}")
    by_hand = (args.coordinator, args.num_processes, args.process_id)
    if any(x is not None for x in by_hand) and None in by_hand:
        raise UserError("Give --coordinator, --num_processes and --process_id together, or none.")
    from aigc_jax import parallel, train

    if args.distributed or args.coordinator:
        parallel.initialize(*by_hand)
    state = train.run(config, workdir)
    if parallel.is_lead() and int(state.step) >= config.num_train_steps:
        print(train.farewell(workdir), flush=True)


def _add_sample(parser: argparse.ArgumentParser):  # noqa: ANN202
    """generate images from a trained run"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add(
        "--out", default="samples.png", help="x.png (a grid), x.npz (uint8 NHWC, arr_0) or a folder"
    )
    add("--n", type=int, default=64, help="how many (default: 64)")
    add("--label", type=int, help="their class (default: each in turn)")
    add("--seed", type=int, default=0)
    add("--truncation", type=float, help="keep latents within +- this: less variety, more quality")
    add("--temperature", type=float, help="of what is drawn; below 1: less variety")
    add("--top_k", type=int, help="draw each code from the k likeliest")
    add("--guidance", type=float, help="how strongly the condition is followed")
    add("--step", type=int, help=_STEP_HELP)
    return _sample


_STEP_HELP = "of the checkpoint (default: the newest)"
_KNOBS = ("truncation", "temperature", "top_k", "guidance")


def _sample(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import config as configs
    from aigc_jax import methods, runs, sampling

    _check_numbers(args, n=1)
    knobs = {name: getattr(args, name) for name in _KNOBS if getattr(args, name) is not None}
    sampling.check_values(knobs)
    sampling.check_out(args.out)
    config = configs.of_run(args.workdir)
    sampling.check_draws(methods.load(config.method), knobs)
    sampling.class_labels(config, 1, args.label)
    run = runs.load(args.workdir, args.step)
    images, labels = sampling.generate(run, args.n, label=args.label, seed=args.seed, **knobs)
    sampling.write(images, labels, args.out)
    print(f"{len(images)} images of step {run.step} in {args.out}")


def _add_reconstruct(parser: argparse.ArgumentParser):  # noqa: ANN202
    """encode and decode images by a run: each beside its reconstruction, PSNR and SSIM"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add("--input", required=True, metavar="PATH", help=f"a folder of images, or one; {_BY_CLASS}")
    add("--out", required=True, metavar="DIR", help="a new folder: PNGs, and scores.json")
    add("--label", type=int, help="the class of all of them")
    add("--step", type=int, help=_STEP_HELP)
    return _reconstruct


_BY_CLASS = "of a conditional run, with --label or in subfolders named after its classes"


def _reconstruct(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import latents

    print(latents.reconstruct(args.workdir, args.input, args.out, args.label, args.step).told())


def _add_interpolate(parser: argparse.ArgumentParser):  # noqa: ANN202
    """a grid whose rows walk from one latent of a run to another"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add("--out", default="interpolation.png", metavar="FILE", help="x.png")
    add("--rows", type=int, default=8, help="walks (default: 8)")
    add("--columns", type=int, default=10, help="images of each, both ends included (default: 10)")
    add("--label", type=int, help="the class of all rows (default: each in turn)")
    add("--seed", type=int, default=0, help="of the latents, or of the choice of images")
    add("--input", metavar="DIR", help=f"walk between images of a folder; {_BY_CLASS}")
    add("--step", type=int, help=_STEP_HELP)
    return _interpolate


def _interpolate(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import latents, sampling, writers

    _check_numbers(args, rows=1, columns=2)
    if Path(args.out).suffix != ".png":
        raise UserError(f"--out {args.out}: end it in .png.")
    sampling.check_out(args.out)
    images = latents.interpolate(
        args.workdir, args.rows, args.columns, label=args.label, seed=args.seed,
        source=args.input, step=args.step,
    )  # fmt: skip
    writers.save_png(writers.tile(images), args.out)
    print(f"{args.rows} walks of {args.columns} images in {args.out}")


def _add_translate(parser: argparse.ArgumentParser):  # noqa: ANN202
    """translate images of any size by a run, or by a published PyTorch generator's file"""
    add = parser.add_argument
    add("--workdir", help="of the run")
    add("--weights", metavar="FILE", help="in its place, x.pth: CycleGAN's, CUT's or pix2pix's")
    add("--input", required=True, metavar="PATH", help="images, or one; white where transparent")
    add("--out", required=True, metavar="DIR", help="a new folder: a PNG of each, of its size")
    add("--direction", help="a2b (default) or b2a")
    add("--label", type=int, help="the class to translate to, where the run knows classes")
    add("--pairs", action="store_true", help=_PAIRS_HELP)
    add("--tile", type=int, default=2048, metavar="N", help=_TILE_HELP)
    add("--step", type=int, help=_STEP_HELP)
    return _translate


_PAIRS_HELP = "images are pairs a | b: translate the left half, or by --direction b2a the right"
_TILE_HELP = "pixels a side above which an image goes through in tiles (default: 2048)"


def _translate(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import translation

    done = translation.translate(
        args.workdir, args.input, args.out, weights=args.weights, direction=args.direction,
        label=args.label, step=args.step, pairs=args.pairs, tile=args.tile,
    )  # fmt: skip
    print(done.told())


def _add_evaluate(parser: argparse.ArgumentParser):  # noqa: ANN202
    """score images or a run, against real images or by the run's own metrics"""
    add = parser.add_argument
    add("--fake", required=True, metavar="PATH", help=_PATH_HELP)
    add("--real", metavar="PATH", help="real images, or .npz statistics (a run's default: its own)")
    known = "fid, fid_infinity, sfid, is, kid, prdc, pr, label_accuracy, or a run's own: elbo, psnr"
    add("--metrics", metavar="A,B", help=f"of {known} (default: fid,kid; of a run, as it says)")
    _add_network(add)
    add("--num", type=int, help="images of each side at most; of a run, so many samples")
    add("--k", type=int, help="importance samples for each image, of a VAE's nll")
    add("--direction", help="of a run that translates: a2b or b2a (default: as it says)")
    add("--seed", type=int, default=0, help="of a run's samples")
    add("--interval", action="store_true", help="a confidence interval of FID (slower)")
    add("--json", metavar="FILE", help="write the scores there too")
    return _evaluate


_PATH_HELP = "a folder or zip of images, an .npz of uint8 images, tfds:NAME/SPLIT, or a run"


def _add_network(add: Callable) -> None:
    add("--extractor", help="inception, vgg16, or a classifier's workdir")
    add("--weights", metavar="FILE", help="the network's (default: found in the cache, or fetched)")
    add("--protocol", help="tf1 (default), pytorch_fid, clean, adm or stylegan")
    precisions = ["highest", "high", "default"]
    add("--precision", choices=precisions, help="of Inception's products; highest is float32")
    add("--batch_size", type=int, help="images at once; numbers don't depend on it")


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import evaluate, runs, sets, suite
    from aigc_jax.metrics import protocols

    _check_numbers(args, num=2, batch_size=1, k=1)
    _check_parent("--json", args.json)
    metrics = [name.strip().lower() for name in (args.metrics or "").split(",") if name.strip()]
    extractor = args.extractor or ("inception" if args.weights else None)
    evaluate.check_asked(args.fake, metrics, args.k, args.direction, extractor)
    if runs.is_run(args.fake):
        run = evaluate.reconfigured(
            runs.load(args.fake), nll_samples=args.k, direction=args.direction,
            extractor=extractor, extractor_batch_size=args.batch_size,
            **{name: getattr(args, name) for name in ("weights", "protocol", "precision")},
        )  # fmt: skip
        settings = suite.Settings(protocols.find(run.config.eval.protocol), args.interval)
        found = evaluate.run_scores(run, metrics, args.real, args.num, args.seed, settings)
    else:
        settings = suite.Settings(protocols.find(args.protocol or "tf1"), args.interval)
        metrics = metrics or evaluate.usual_metrics(args.real, args.fake)
        suite.check_names(metrics, args.real is not None)
        for path in filter(None, (args.fake, args.real)):
            sets.check_readable(path, args.num)
        found = evaluate.image_scores(
            metrics, args.real, args.fake, _viewer(args), settings, args.num, args.seed
        )
    _show(found, args)


def _viewer(args: argparse.Namespace):  # noqa: ANN202
    from aigc_jax import networks, scoring
    from aigc_jax.metrics import protocols

    protocol = protocols.find(args.protocol or "tf1")
    name = args.extractor or "inception"
    network = networks.load(name, args.weights, protocol, args.precision or "highest")
    return scoring.Viewer(network, protocol, batch_size=args.batch_size)


def _check_numbers(args: argparse.Namespace, **leasts: int) -> None:
    for name, least in leasts.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: it must be at least {least}.")


def _check_parent(flag: str, path: str | None) -> None:
    if path and not Path(path).parent.is_dir():
        raise UserError(f"{flag} {path}: make the folder {Path(path).parent} first.")
    if path and Path(path).is_dir():
        raise UserError(f"{flag} {path} is a folder: name a file.")


def _show(found, args: argparse.Namespace) -> None:  # noqa: ANN001
    from aigc_jax import scores, suite

    print(scores.table(found.scores))
    for line in suite.remarks(found.scores):
        logging.warning("%s", line)
    how = "by" if "extractor" in found.provenance else "on"
    print(f"\nMeasured {how} {scores.measured_alike(found.provenance)}.")
    if args.json:
        content = {**found.scores, "provenance": found.provenance}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n")


def _add_stats(parser: argparse.ArgumentParser):  # noqa: ANN202
    """write the mean and covariance of images' features, which evaluate takes for --real"""
    add = parser.add_argument
    add("path", metavar="PATH", help=_PATH_HELP)
    add("--out", required=True, metavar="FILE", help="x.npz: mu, sigma, n, meta")
    _add_network(add)
    add("--num", type=int, help="images at most; of a run, so many samples")
    add("--seed", type=int, default=0, help="of a run's samples")
    return _stats


def _stats(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import sets

    if not args.out.endswith(".npz"):
        raise UserError(f"--out {args.out}: end it in .npz.")
    _check_numbers(args, num=2, batch_size=1)
    _check_parent("--out", args.out)
    sets.check_readable(args.path, args.num)
    seen = sets.see(args.path, _viewer(args), args.num, args.seed)
    seen.statistics.save(args.out)
    print(f"Statistics of {seen.n} images, {len(seen.statistics.mu)} features, in {args.out}")


def _add_compare(parser: argparse.ArgumentParser):  # noqa: ANN202
    """one table of the last and the best scores of runs"""
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    return _compare


def _compare(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import scores

    print(scores.compare(args.workdirs))


def _add_selfcheck(parser: argparse.ArgumentParser):  # noqa: ANN202
    """reproduce published figures with Inception's weights: expected and got"""
    add = parser.add_argument
    add("--weights", metavar="FILE", help="Inception's (default: found in the cache, or fetched)")
    add("--cifar10", metavar="DIR", help="with the original's binary or Python batches")
    add("--quick", action="store_true", help="only what takes minutes on a CPU")
    return _selfcheck


def _selfcheck(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import selfcheck

    if not selfcheck.run(args.weights, args.cifar10, args.quick):
        raise UserError("Figures differ from the published ones: see the table.")
