"""The commands that measure: images, runs, this library itself."""

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

from aigc_jax.commands.common import STEP_HELP, TRUNCATION_HELP, Runner, check_numbers, check_parent
from aigc_jax.errors import UserError

_PATH_HELP = "a folder or zip of images, an .npz of uint8 images, tfds:NAME/SPLIT, or a run"


def add_evaluate(parser: argparse.ArgumentParser) -> Runner:
    """score images or a run, against real images or by the run's own metrics"""
    add = parser.add_argument
    add("--fake", required=True, metavar="PATH", help=_PATH_HELP)
    add("--real", metavar="PATH", help="real images, or .npz statistics (a run's default: its own)")
    known = "fid, fid_infinity, sfid, is, kid, prdc, pr, label_accuracy, attributes, r_precision"
    known += ", or a run's own: elbo, psnr"
    add("--metrics", metavar="A,B", help=f"of {known} (default: fid,kid; of a run, as it says)")
    _add_network(add)
    add("--num", type=int, help="images of each side at most; of a run, so many samples")
    add("--k", type=int, help="importance samples for each image, of a VAE's nll")
    add("--direction", help="of a run that translates: a2b or b2a (default: as it says)")
    add("--split", help="of a run's held-out images, e.g. novel of shapes (default: as it says)")
    add("--seed", type=int, default=0, help="of a run's samples")
    add("--interval", action="store_true", help="a confidence interval of FID (slower)")
    add("--json", metavar="FILE", help="write the scores there too")
    return _evaluate


def _add_network(add: Callable) -> None:
    add("--extractor", help="inception, vgg16, or the workdir of a classifier or a probe")
    add("--weights", metavar="FILE", help="the network's (default: found in the cache, or fetched)")
    add("--protocol", help="tf1 (default), pytorch_fid, clean, adm or stylegan")
    precisions = ["highest", "high", "default"]
    add("--precision", choices=precisions, help="of Inception's products; highest is float32")
    add("--batch_size", type=int, help="images at once; numbers don't depend on it")


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import evaluate, runs, sets, suite
    from aigc_jax.metrics import protocols

    check_numbers(args, num=2, batch_size=1, k=1)
    check_parent("--json", args.json)
    metrics = [name.strip().lower() for name in (args.metrics or "").split(",") if name.strip()]
    extractor = args.extractor or ("inception" if args.weights else None)
    evaluate.check_asked(args.fake, metrics, args.k, args.direction, extractor, args.split)
    if runs.is_run(args.fake):
        run = evaluate.reconfigured(
            runs.load(args.fake), nll_samples=args.k, direction=args.direction, split=args.split,
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


def add_inspect(parser: argparse.ArgumentParser) -> Runner:
    """what is in a data set: sizes, classes, duplicates, blank, blurred and corrupt images"""
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="SOURCE",
        help="folder:DIR, tfds:NAME[/SPLIT], npz:FILE, generated:DIR, digits",
    )
    add("--against", metavar="SOURCE", help="another, such as its test set: what do they share?")
    add("--out", default="inspection", metavar="DIR", help="a new folder: page.png, report.json")
    add("--split", default="train", help="of a source that has some and names none")
    add("--num", type=int, default=20_000, help="images of each at most (default: 20000)")
    add("--image-size", type=int, default=64, help="at which they are looked at (default: 64)")
    add("--data-dir", help="where TFDS sets lie")
    return _inspect


def _inspect(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import inspecting

    check_numbers(args, num=1, image_size=16)
    lines = inspecting.inspect(
        args.data, args.against, args.out, split=args.split, num=args.num,
        image_size=args.image_size, data_dir=args.data_dir,
    )  # fmt: skip
    print("\n".join([*lines, f"Look at {args.out}/page.png."]))


def add_neighbors(parser: argparse.ArgumentParser) -> Runner:
    """does a run copy its training images? samples beside the nearest of them, and a test"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add("--out", default="neighbors.png", metavar="FILE", help="x.png: samples, each with the 4")
    add("--num", type=int, default=1000, help="samples (default: 1000)")
    add("--seed", type=int, default=0, help="of the samples")
    add("--truncation", type=float, help=TRUNCATION_HELP)
    add("--json", metavar="FILE", help="write the numbers there")
    add("--step", type=int, help=STEP_HELP)
    return _neighbors


def _neighbors(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import memorization, runs, sampling

    check_numbers(args, num=4)
    if Path(args.out).suffix != ".png":
        raise UserError(f"--out {args.out}: end it in .png.")
    sampling.check_out(args.out)
    check_parent("--json", args.json)
    knobs = {} if args.truncation is None else {"truncation": args.truncation}
    sampling.check_values(knobs)
    run = runs.load(args.workdir, args.step)
    found = memorization.memorized(run, args.out, args.num, args.seed, **knobs)
    if args.json:
        runs.write_json(Path(args.json), dataclasses.asdict(found))
    print(f"{found.told()}\nLook at {args.out}.")


def add_stats(parser: argparse.ArgumentParser) -> Runner:
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
    check_numbers(args, num=2, batch_size=1)
    check_parent("--out", args.out)
    sets.check_readable(args.path, args.num)
    seen = sets.see(args.path, _viewer(args), args.num, args.seed)
    seen.statistics.save(args.out)
    print(f"Statistics of {seen.n} images, {len(seen.statistics.mu)} features, in {args.out}")


def add_compare(parser: argparse.ArgumentParser) -> Runner:
    """one table of the last and the best scores of runs"""
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    return _compare


def _compare(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import scores

    print(scores.compare(args.workdirs))


def add_selfcheck(parser: argparse.ArgumentParser) -> Runner:
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
