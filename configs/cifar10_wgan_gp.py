"""WGAN-GP with residual networks (Gulrajani et al. 2017, section 5.4, appendix F), unconditional.

Published: inception score 7.86, 100,000 steps of 5 critic updates of 64, G's batches twice as large
(here they are the same); FID 40.1 (as Miyato et al. 2018 quote it). Kang et al. 2022 reach 25.9
(10,000 test images) in 11 hours on a TITAN RTX with batch norm in the critic, which this has not.
`:mnist` is narrower, for digits: some minutes on a CPU core.

```
aigc train --config=configs/cifar10_wgan_gp.py
aigc train --config=configs/cifar10_wgan_gp.py:mnist
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:cifar10"
    config.data.flip = True
    config.task = "generate"
    config.image_size = 32
    config.method = "gan"
    config.generator = ConfigDict(
        {"name": "resnet_gan", "width": 32, "latent_dim": 128, "condition": "batch_norm"}
    )
    config.discriminator = ConfigDict(
        {
            "name": "resnet_gan",
            "width": 64,
            "spectral": False,
            "pool": "mean",
            "condition": "projection",
        }
    )
    config.loss = "wasserstein"
    config.gradient_penalty = 10.0
    config.r1 = config.r2 = 0.0
    config.batch_size = 64
    config.d_steps = 5
    config.num_train_steps = 100_000
    config.optimizer.lr = 2e-4
    config.optimizer.b1, config.optimizer.b2 = 0.0, 0.9
    config.optimizer.schedule = "linear"
    config.sample_every = config.checkpoint_every = 1000
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    config.eval.every = 10_000
    config.eval.best = "eval_fid"
    mnist = {
        "data.source": "tfds:mnist", "data.flip": False, "eval.extractor": "mnist_classifier",
        "eval.best": "", "sample_every": 200, "checkpoint_every": 200, "ema.half_life": 5000.0,
        "batch_size": 32, "generator.width": 8, "discriminator.width": 8, "d_steps": 2,
        "optimizer.lr": 5e-4, "num_train_steps": 800,
    }  # fmt: skip
    return configs.finish(config, arg, mnist=mnist)
