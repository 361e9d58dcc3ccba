"""BigGAN (Brock et al. 2019) on CIFAR-10, 32x32, by class.

The recipe of Kang et al. 2022 (width 96, hierarchical latents; the paper's FID on CIFAR-10 is
14.7). Published: FID 8.0 (10,000 test images), 4.2 (50,000 training images), 100,000 steps of 5
updates of D in 12.8 hours on a TITAN RTX; 28.6 after 10,000, 14.9 after 20,000. `:mnist` is
narrower, for digits: some minutes on a CPU core.

```
aigc train --config=configs/cifar10_biggan.py
aigc train --config=configs/cifar10_biggan.py:mnist
aigc sample --workdir runs/cifar10_biggan --truncation 0.7 --out truncated.png
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
    config.generator = ConfigDict(
        {"name": "biggan", "width": 96, "chunk": 20, "attention": 16, "condition": "batch_norm"}
    )
    config.discriminator = ConfigDict(
        {"name": "biggan", "width": 96, "attention": 16, "condition": "projection"}
    )
    config.loss = "hinge"
    config.gradient_penalty = config.r1 = config.r2 = 0.0
    config.batch_size = 64
    config.d_steps = 5
    config.num_train_steps = 100_000
    config.optimizer.lr = 2e-4
    config.optimizer.b1, config.optimizer.b2 = 0.5, 0.999
    config.optimizer.eps = 1e-6
    config.ema.half_life = 2.2e6  # a decay of 0.9999 a step of 5 x 64 images
    config.ema.standing = 16
    config.sample_every = config.checkpoint_every = 1000
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    config.eval.every = 10_000
    config.eval.best = "eval_fid"
    mnist = {
        "data.source": "tfds:mnist", "data.flip": False, "eval.extractor": "mnist_classifier",
        "eval.best": "", "sample_every": 200, "checkpoint_every": 200, "ema.half_life": 5000.0,
        "batch_size": 32, "generator.width": 8, "discriminator.width": 16, "d_steps": 1,
        "optimizer.lr": 5e-4, "num_train_steps": 1000, "ema.standing": 16,
    }  # fmt: skip
    return configs.finish(config, arg, mnist=mnist)
