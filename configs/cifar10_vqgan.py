"""The VQ-VAE of cifar10_vqvae with VQGAN's loss: a classifier's features and a PatchGAN sharpen it.

15 minutes on one CPU core for 1,500 steps, the discriminator there from step 1,000.

```
aigc train --config=configs/cifar10_classifier.py
aigc train --config=configs/cifar10_vqgan.py --config.frozen.perceptual=runs/cifar10_classifier
```
"""

from ml_collections import ConfigDict

from aigc_jax import adversary
from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:cifar10"
    config.data.flip = True
    config.task = "generate"
    config.image_size = 32
    config.method = "vqvae"
    config.encoder = ConfigDict(
        {
            "name": "vqvae",
            "width": 128,
            "halvings": 2,
            "blocks": 2,
            "block_width": 32,
            "embedding_dim": 64,
        }
    )
    config.decoder = ConfigDict(
        {"name": "vqvae", "width": 128, "halvings": 2, "blocks": 2, "block_width": 32}
    )
    config.codebook = ConfigDict(
        {
            "size": 512,
            "decay": 0.99,  # of its moving averages, per step
            "commitment": 0.25,  # weight of the encoder's distance to its codes
            "revive_below": 0.05,  # codes used less than this share of even use are replaced
        }
    )
    config.reconstruction = "l2"  # l2 | l1
    config.data_variance = 0.2507  # of the training set's pixels in [-1, 1]
    config.frozen.perceptual = ""  # the workdir of a run of cifar10_classifier
    config.adversary = adversary.defaults()
    config.adversary.discriminator.width = 32
    config.adversary.weight = 0.8
    config.adversary.start = 4 if arg == "smoke" else 1000
    config.adversary.perceptual_weight = 1.0
    config.batch_size = 128
    config.num_train_steps = 2400
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    return configs.finish(config, arg)
