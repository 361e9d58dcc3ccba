"""DCGAN (Radford et al. 2016) on CIFAR-10, class-conditional by concatenation.

With the schedule of Kang et al. 2022: two updates of D a step, 200,000 steps of 64. Published
there, without labels and with a somewhat other D: FID 49.0 (10,000 test images) at its best, after
42,000 steps and 1.1 hours on a TITAN RTX; then it diverges, 126 after 100,000: `eval.best` keeps
the best.
`:cpu` is narrower: 13 minutes on one CPU core and 4 for the judge; `:mnist` is for digits.

```
aigc train --config=configs/cifar10_dcgan.py
aigc train --config=configs/cifar10_dcgan.py:cpu
aigc train --config=configs/cifar10_dcgan.py:cpu --config.data.split='train[:10%]' \\
  --config.d_augment=color,translation,cutout --workdir=runs/tenth
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:cifar10"
    config.data.flip = True
    config.image_size = 32
    config.method = "gan"
    config.generator = ConfigDict({"name": "dcgan", "width": 64, "latent_dim": 100})
    config.discriminator = ConfigDict({"name": "dcgan", "width": 64})
    config.loss = "non_saturating"
    config.gradient_penalty = config.r1 = config.r2 = 0.0
    config.batch_size = 64
    config.d_steps = 2
    config.num_train_steps = 200_000
    config.sample_every = config.checkpoint_every = 1000
    config.optimizer.lr = 2e-4
    # The judge of the samples, trained first.
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    config.eval.every = 10_000
    config.eval.best = "eval_fid"
    cpu = {
        "generator.width": 32, "discriminator.width": 32, "d_steps": 1, "optimizer.lr": 4e-4,
        "num_train_steps": 10_000, "eval.every": 2000,
    }  # fmt: skip
    mnist = {
        "data.source": "tfds:mnist", "data.flip": False, "eval.extractor": "mnist_classifier",
        "eval.best": "", "sample_every": 500, "checkpoint_every": 500, "ema.half_life": 5000.0,
        "batch_size": 32, "generator.width": 32, "discriminator.width": 32, "d_steps": 1,
        "optimizer.lr": 4e-4, "num_train_steps": 4000,
    }  # fmt: skip
    return configs.finish(config, arg, cpu=cpu, mnist=mnist)
