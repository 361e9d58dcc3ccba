"""A model that feeds on itself, with real images among its food and without.

    python benchmarks/collapse.py [--out runs/collapse] [--generations 5]

Two loops of `aigc selftrain` on 16x16 digits from one generation 0: on generated images alone, and
half of them real. Writes `collapse.png`, the curves, and `samples.png`, a row a generation of each.
"""

import argparse
import shutil
from pathlib import Path

import harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--config", default="digits_dcgan")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000, help="of each generation")
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--keep", default="", help="filters of a third loop, on generated alone")
    options = parser.parse_args()
    import numpy as np

    from aigc_jax import config as configs
    from aigc_jax import runs, sampling, self_training
    from aigc_jax.writers import save_png, tile

    config = configs.load(options.config)
    config.image_size, config.num_train_steps = options.image_size, options.steps
    arms = {"generated only": {}, "50% real": {"real": 0.5}}
    if options.keep:
        arms["generated only, sifted"] = {"keep": options.keep}
    curves, grid, begun = {}, [], None
    for name, settings in arms.items():
        workdir = options.out / name.replace(" ", "_").replace("%", "").replace(",", "")
        if begun and not (workdir / "generation_0").exists():
            shutil.copytree(begun / "generation_0", workdir / "generation_0")
        begun = begun or workdir
        curves[name] = self_training.self_train(config, workdir, options.generations, **settings)
        for i in range(options.generations + 1):
            grid.append(sampling.generate(runs.load(workdir / f"generation_{i}"), 20)[0])
    for name, records in curves.items():
        head, *rows = self_training.table(records)
        print(f"\n{name}\n\n{harness.table(head, rows)}")
    self_training.plot(curves, options.out / "collapse.png")
    save_png(tile(np.stack(grid)), options.out / "samples.png")
    print(f"\nLook at {options.out}. {harness.machine('jax')}")


if __name__ == "__main__":
    main()
