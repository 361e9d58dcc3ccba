"""The commands that repair images, damage them, and measure how much of that a run stands."""

import argparse

from aigc_jax.commands.common import STEP_HELP, TILE_HELP, Runner, check_numbers


def add_restore(parser: argparse.ArgumentParser) -> Runner:
    """repair noise, blur and other damage: by a run, a published DnCNN, or a classical filter"""
    add = parser.add_argument
    add("--workdir", help="of the run")
    add("--weights", metavar="FILE", help="in its place, a published DnCNN's x.pth")
    add("--method", help="or a filter: nlmeans, gaussian, bilateral, median, tv")
    add("--sigma", type=float, help="the noise that a filter is to remove, in grey levels of 255")
    add("--input", required=True, metavar="PATH", help="images of any size, or one")
    add("--out", required=True, metavar="DIR", help="a new folder: a PNG of each, of its size")
    add("--target", metavar="PATH", help="whole images of the same names: prints PSNR and SSIM")
    add("--degrade", metavar="OPS", help=_DEGRADE_HELP)
    add("--seed", type=int, default=0, help="of --degrade")
    add("--tile", type=int, default=2048, metavar="N", help=TILE_HELP)
    add("--step", type=int, help=STEP_HELP)
    return _restore


_DEGRADE_HELP = (
    "the images are whole: damage them first, e.g. by noise(25), unclipped, and compare with them"
)


def _restore(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import restoration

    done = restoration.restore(
        args.input, args.out, workdir=args.workdir, weights=args.weights, method=args.method,
        sigma=args.sigma, target=args.target, ops=args.degrade, seed=args.seed, step=args.step,
        tile=args.tile,
    )  # fmt: skip
    print(done.told())


def add_inpaint(parser: argparse.ArgumentParser) -> Runner:
    """fill holes: by a run trained to, or by the nearest image a GAN or VAE can make"""
    add = parser.add_argument
    add("--workdir", required=True, help="of the run; of a GAN's or VAE's the latents are searched")
    add("--input", required=True, metavar="PATH", help="an image, or a folder of them")
    add("--mask", required=True, metavar="PATH", help="white = hole; a folder: by the same names")
    add("--out", required=True, metavar="PATH", help="x.png for one image, or a new folder")
    add("--label", type=int, help="the images' class, where a generator knows classes")
    add("--seed", type=int, default=0, help="of the search")
    add("--tile", type=int, default=2048, metavar="N", help=TILE_HELP)
    add("--step", type=int, help=STEP_HELP)
    return _inpaint


def _inpaint(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import inpainting

    done = inpainting.inpaint(
        args.workdir, args.input, args.mask, args.out, label=args.label, seed=args.seed,
        step=args.step, tile=args.tile,
    )  # fmt: skip
    print(done.told())


DEGRADE_EPILOG = """\
damages, each with a number or a range that every image draws of, noise(5..25):
  noise(SIGMA)       grey levels of 255       poisson(PEAK)      photons at white
  salt_pepper(SHARE) of the pixels            speckle(SIGMA)     at white, less where dark
  blur(SIGMA)        pixels, Gaussian         motion(LENGTH)     pixels, at a random angle
  defocus(RADIUS)    pixels, a disc           jpeg(QUALITY)      1 to 100
  downsample(FACTOR) and back, 1 to 32        quantize(LEVELS)   2 to 256
  elastic(STRENGTH)  pixels                   perspective(SHARE) of the side, up to 0.2
  blind              a random chain of them
holes, of which A|B draws one:
  centre(SHARE)      of the side              boxes(N)           1..4 where it is left out
  strokes(N)         of a brush, 1..3         half(SHARE)        at a random side
  text(HEIGHT)       letters, 0.15..0.3       random(SHARE)      single pixels
"""


def add_degrade(parser: argparse.ArgumentParser) -> Runner:
    """damage images: noise, blur, JPEG, holes and others, by a seed"""
    add = parser.add_argument
    add("--input", required=True, metavar="PATH", help="images of any size, or one")
    add("--out", required=True, metavar="DIR", help="a new folder: a PNG of each, of its size")
    add("--ops", default="", help='one after another, e.g. "blur(1.5),noise(5..25),jpeg(40)"')
    add("--mask", help="holes, e.g. strokes|boxes: their masks go to the subfolder masks")
    add("--seed", type=int, default=0)
    return _degrade


def _degrade(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import degrading

    print(degrading.degrade(args.input, args.out, args.ops, args.seed, args.mask).told())


AUGMENT_EPILOG = """\
by up to the number, either way, unless it is said otherwise:
  flip(P) vflip(P)   with probability 0.5     turn               by quarters
  rotate(DEGREES)                             shear(DEGREES)
  crop(SHARE)        of the side, at least    translate(SHARE)   of the side
  zoom(SHARE)        larger or smaller        stretch(SHARE)     wider or higher
  perspective(SHARE) of the side, up to 0.2   elastic(STRENGTH)  exactly, pixels
  brightness(X) contrast(X) saturation(X)     color(X)           all three
  hue(DEGREES)       about grey               grey(P) negative(P)  with probability 0.2, 0.5
  noise(SIGMA)       exactly, of 255 levels   blur(SIGMA)        exactly, pixels
  cutout(SHARE)      of the side              same               nothing
A number may be a range, of which each image draws: blur(0..2).
"""


def add_augment(parser: argparse.ArgumentParser) -> Runner:
    """enhance images: copies turned, cropped, recoloured and more, by a seed"""
    add = parser.add_argument
    add("--input", required=True, metavar="PATH", help="images of any size, or one")
    add("--out", required=True, metavar="DIR", help="a new folder: PNGs, subfolders stay")
    add("--ops", required=True, help='e.g. "rotate(15),flip,crop(0.8),color(0.2)"')
    add("--n", type=int, default=1, help="copies of each (default: 1)")
    add("--masks", metavar="DIR", help="masks or label maps of the same names, moved alike")
    add("--seed", type=int, default=0)
    return _augment


def _augment(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import enhancing

    check_numbers(args, n=1)
    done = enhancing.augment(args.input, args.out, args.ops, args.n, args.seed, args.masks)
    print(done.told())


def add_robustness(parser: argparse.ArgumentParser) -> Runner:
    """curves of a run's quality along the strength of degradations"""
    add = parser.add_argument
    add("workdirs", nargs="+", metavar="WORKDIR", help="runs of one kind, a curve each")
    add("--ops", required=True, help='ranges, e.g. "noise(0..75),blur(0..4),jpeg(95..5)"')
    add("--out", required=True, metavar="DIR", help="a new folder: curves.png, curves.json")
    add("--num", type=int, default=1000, help="held-out images at most (default: 1000)")
    add("--points", type=int, default=6, help="strengths of each (default: 6)")
    add("--seed", type=int, default=0)
    return _robustness


def _robustness(args: argparse.Namespace, rest: list[str]) -> None:
    from aigc_jax import robustness

    check_numbers(args, num=1, points=2)
    done = robustness.curves(
        args.workdirs, args.ops, args.out, num=args.num, points=args.points, seed=args.seed
    )
    print(done.told())
