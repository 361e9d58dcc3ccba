"""The command line: parses, calls, prints."""

import argparse
import logging
import sys
from typing import NoReturn

import absl.logging

from aigc_jax import __version__
from aigc_jax.commands import making, measuring, restoring, training
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
The source is digits, tfds:NAME[/SPLIT], folder:DIR, npz:FILE, shapes or generated:DIR (written by
aigc sample --as-dataset); --config.data.mix takes several.

Launched again with the same workdir, a run continues. On several machines, start the same command
on each: with --distributed under Slurm or on a Cloud TPU pod, else with the three flags.
"""

_EPILOGS = {
    "train": _TRAIN_EPILOG,
    "degrade": restoring.DEGRADE_EPILOG,
    "augment": restoring.AUGMENT_EPILOG,
}


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
    if rest and args.verb not in ("train", "selftrain"):
        name = f"aigc {args.verb}"
        parser.exit(2, f"{name}: unrecognized arguments: {' '.join(rest)} (see {name} --help)\n")
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
        "train": training.add_train,
        "selftrain": training.add_selftrain,
        "sample": making.add_sample,
        "reconstruct": making.add_reconstruct,
        "interpolate": making.add_interpolate,
        "translate": making.add_translate,
        "restore": restoring.add_restore,
        "inpaint": restoring.add_inpaint,
        "degrade": restoring.add_degrade,
        "augment": restoring.add_augment,
        "robustness": restoring.add_robustness,
        "evaluate": measuring.add_evaluate,
        "neighbors": measuring.add_neighbors,
        "inspect": measuring.add_inspect,
        "stats": measuring.add_stats,
        "compare": measuring.add_compare,
        "selfcheck": measuring.add_selfcheck,
    }
    for name, add in commands.items():
        help_text, epilog = add.__doc__, _EPILOGS.get(name)
        verb = verbs.add_parser(
            name, help=help_text, description=help_text, epilog=epilog, formatter_class=keep,
            allow_abbrev=False,
        )  # fmt: skip
        verb.set_defaults(run=add(verb))
    return parser
