"""The command line: parses, calls, prints."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import NoReturn

import absl.logging

from aigc_jax import __version__
from aigc_jax.errors import UserError

_EPILOG = """\
start here:
  aigc train                                    a GAN on handwritten digits: two minutes on a CPU
  aigc sample --workdir runs/digits_dcgan --label 3 --n 64 --out threes.png
  aigc evaluate --fake runs/digits_dcgan        its samples, as a classifier reads them
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
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax and clu tell of their own affairs
    try:
        args.run(args, rest)
    except UserError as error:
        print(f"aigc {args.verb}: {error}", file=sys.stderr)
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
    for name, add in (("train", _add_train), ("sample", _add_sample), ("evaluate", _add_evaluate)):
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
    add("--step", type=int, help="of the checkpoint (default: the newest)")
    return _sample


def _sample(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import runs, sampling

    if args.n < 1:
        raise UserError(f"--n {args.n}: it must be at least 1.")
    if args.truncation is not None and args.truncation <= 0:
        raise UserError(f"--truncation {args.truncation}: it must be above 0, such as 0.7.")
    knobs = {} if args.truncation is None else {"truncation": args.truncation}
    sampling.check_out(args.out)
    run = runs.load(args.workdir, args.step)
    images, labels = sampling.generate(run, args.n, label=args.label, seed=args.seed, **knobs)
    sampling.write(images, labels, args.out)
    print(f"{len(images)} images of step {run.step} in {args.out}")


def _add_evaluate(parser: argparse.ArgumentParser):  # noqa: ANN202
    """score a run: its own metrics, and its samples as a trained classifier reads them"""
    add = parser.add_argument
    add("--fake", required=True, metavar="WORKDIR", help="the run to score")
    add("--real", metavar="SOURCE", help="real images (default: the run's source, eval.split)")
    add("--extractor", metavar="WORKDIR", help="a classifier's run (default: the run's config's)")
    add("--num", type=int, help="samples at most (default: the config's eval.num_samples)")
    add("--seed", type=int, default=0)
    add("--json", metavar="FILE", help="write the scores there too")
    return _evaluate


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import evaluate, runs

    run = runs.load(args.fake)
    scores = evaluate.run_scores(run, args.real, args.extractor, args.num, args.seed)
    for name, value in scores.items():
        print(f"{name:24s} {value:.5g}")
    if args.json:
        Path(args.json).write_text(json.dumps(scores, indent=2) + "\n")
