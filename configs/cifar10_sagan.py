"""SAGAN (Zhang et al. 2019) on CIFAR-10: SNGAN with attention at 16x16, spectral norm in both.

The recipe of Kang et al. 2022 for 32 pixels (the paper's is for ImageNet at 128, two time scales,
1e-4 and 4e-4, one update of D). Published: FID 14.0 (10,000 test images), 10.4 (50,000 training
images), 100,000 steps of 5 updates of D in 9.3 hours on a TITAN RTX. `:mnist` is narrower, for
digits: some minutes on a CPU core.

```
aigc train --config=configs/cifar10_sagan.py
aigc train --config=configs/cifar10_sagan.py:mnist
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
    both = {"name": "resnet_gan", "width": 64, "spectral": True, "initialization": "orthogonal"}
    both["attention"] = 16
    config.generator = ConfigDict(both | {"latent_dim": 128, "condition": "batch_norm"})
    config.discriminator = ConfigDict(both | {"condition": "projection"})
    config.loss = "hinge"
    config.gradient_penalty = config.r1 = config.r2 = 0.0
    config.batch_size = 64
    config.d_steps = 5
    config.num_train_steps = 100_000
    config.optimizer.lr = 2e-4
    config.optimizer.b1, config.optimizer.b2 = 0.5, 0.999
    config.optimizer.eps = 1e-6
    config.sample_every = config.checkpoint_every = 1000
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    config.eval.every = 10_000
    config.eval.best = "eval_fid"
    mnist = {
        "data.source": "tfds:mnist", "data.flip": False, "eval.extractor": "mnist_classifier",
        "eval.best": "", "sample_every": 200, "checkpoint_every": 200, "ema.half_life": 5000.0,
        "batch_size": 32, "generator.width": 8, "discriminator.width": 16, "d_steps": 1,
        "optimizer.lr": 5e-4, "num_train_steps": 1000,
    }  # fmt: skip
    return configs.finish(config, arg, mnist=mnist)
