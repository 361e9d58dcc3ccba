"""SNGAN with a projection discriminator (Miyato et al. 2018; Miyato & Koyama 2018), by class.

Published: inception score 8.62, FID 17.5 (5,000 samples), 50,000 steps of 5 updates of D, with
twice G's batches; FID 13.3 (10,000 test images) after 100,000 steps in 9.4 hours on a TITAN RTX
(Kang et al. 2022). On the way there: 43.6 after 2,000 steps, 25.6 after 10,000. `:mnist` is
narrower, for digits: some minutes on a CPU core.

```
aigc train --config=configs/cifar10_sngan.py
aigc train --config=configs/cifar10_sngan.py:mnist
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
        {"name": "resnet_gan", "width": 64, "latent_dim": 128, "condition": "batch_norm"}
    )
    config.generator.initialization = "glorot"
    config.discriminator = ConfigDict(
        {"name": "resnet_gan", "width": 64, "spectral": True, "condition": "projection"}
    )
    config.loss = "hinge"
    config.gradient_penalty = config.r1 = config.r2 = 0.0
    config.batch_size = 64
    config.d_steps = 5
    config.num_train_steps = 50_000
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
        "batch_size": 32, "generator.width": 16, "discriminator.width": 16, "d_steps": 1,
        "optimizer.lr": 5e-4, "optimizer.schedule": "constant", "num_train_steps": 1000,
        "generator.initialization": "orthogonal",
    }  # fmt: skip
    return configs.finish(config, arg, mnist=mnist)
