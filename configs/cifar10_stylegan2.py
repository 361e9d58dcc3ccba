"""StyleGAN2 with adaptive augmentation (Karras et al. 2020a, appendix D.1) on CIFAR-10, by class.

Published: FID 2.42 (50,000 samples and training images), inception score 10.14, after 100,000,000
images; 6.96 without augmentation. On the way there (Kang et al. 2022, two GPUs): 41 after 640,000
images in 1.8 hours, 9.9 after 2,560,000 in 8.6. `:mnist` is narrower, for digits: some minutes on a
CPU core.

The rates of both networks and their b2 are 0.0025 and 0.99 corrected for what is done only every 4
or 16 steps (Karras et al. 2020b, appendix B), as there in G even without path lengths. They are
the networks' own, `generator.lr` and `discriminator.lr`, so that `optimizer.lr` is of no use here.

```
aigc train --config=configs/cifar10_stylegan2.py
aigc train --config=configs/cifar10_stylegan2.py:mnist
aigc sample --workdir runs/cifar10_stylegan2 --truncation 0.7 --out truncated.png
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:cifar10"
    config.image_size = 32
    config.method = "gan"
    config.generator = ConfigDict(
        {
            "name": "stylegan2",
            "width": 512,
            "channel_base": 32768,
            "latent_dim": 512,
            "w_dim": 512,
            "mapping_layers": 2,
            "condition": "style",
            "style_mixing": 0.0,
            "lr": 0.0025 * 4 / 5,
            "b2": 0.99 ** (4 / 5),
        }
    )
    config.discriminator = ConfigDict(
        {
            "name": "stylegan2",
            "width": 512,
            "channel_base": 32768,
            "architecture": "orig",
            "mapping_layers": 8,
            "condition": "projection",
            "mbstd_group": 32,
            "lr": 0.0025 * 16 / 17,
            "b2": 0.99 ** (16 / 17),
        }
    )
    config.loss = "non_saturating"
    config.r1 = 0.01
    config.penalty_every = 16
    config.gradient_penalty = config.r2 = 0.0
    config.d_augment = "ada"
    config.batch_size = 64
    config.num_train_steps = 100_000_000 // 64
    config.optimizer.b1 = 0.0
    config.ema.half_life = 500_000.0
    config.sample_every = config.checkpoint_every = 1000
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    config.eval.every = 10_000
    config.eval.best = "eval_fid"
    # Narrow networks in small batches: with less R1 the discriminator wins.
    mnist = {
        "data.source": "tfds:mnist", "data.flip": False, "eval.extractor": "mnist_classifier",
        "eval.best": "", "sample_every": 200, "checkpoint_every": 200, "ema.half_life": 5000.0,
        "batch_size": 32, "generator.width": 64, "generator.channel_base": 512,
        "generator.latent_dim": 64, "generator.w_dim": 64, "discriminator.width": 64,
        "discriminator.channel_base": 512, "d_augment": "", "num_train_steps": 1000,
        "discriminator.mapping_layers": 2, "r1": 10.0, "penalty_every": 8,
    }  # fmt: skip
    return configs.finish(config, arg, mnist=mnist)
