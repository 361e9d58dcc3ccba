"""The commands that train."""

import argparse
from pathlib import Path

from aigc_jax.commands.common import KEEP_HELP, Runner, check_numbers
from aigc_jax.errors import UserError


def add_train(parser: argparse.ArgumentParser) -> Runner:
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


def add_selftrain(parser: argparse.ArgumentParser) -> Runner:
    """train on real images, then again and again on the model's own: collapse, measured"""
    add = parser.add_argument
    add("--config", default="digits_dcgan", help="a config file or a shipped config's name")
    add("--workdir", help="where all goes (default: runs/<config's name>_loop)")
    add("--generations", type=int, default=5, help="after the first, on real images (default: 5)")
    add("--real", type=float, default=0.0, help="share of real images from then on (default: 0)")
    add("--n", type=int, help="samples of a generation (default: as many as real images)")
    add("--keep", default="", metavar="FILTERS", help=KEEP_HELP)
    add("--seed", type=int, default=0, help="of the samples")
    return _selftrain


def _selftrain(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import config as configs

    check_numbers(args, n=1, generations=1)
    config = configs.override(configs.load(args.config), rest)
    workdir = Path(args.workdir or f"runs/{configs.run_name(args.config)}_loop")
    from aigc_jax import scores, self_training

    records = self_training.self_train(
        config, workdir, args.generations, real=args.real, num=args.n, keep=args.keep,
        seed=args.seed,
    )  # fmt: skip
    names, *rows = self_training.table(records)
    print(scores.markdown(names, rows))
    print(f"Look at {workdir / 'generations.png'} and {workdir / 'samples.png'}.")
