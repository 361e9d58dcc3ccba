"""The command that trains."""

import argparse
from pathlib import Path

from aigc_jax.commands.common import Runner
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
