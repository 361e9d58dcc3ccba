"""VQ-VAE on captioned shapes: 32x32 images as 16x16 codes, which `shapes_text_codes` writes.

PSNR 31.5 dB after 4 minutes on two CPU cores.

```
aigc train --config=configs/shapes_vqvae.py
```
"""

from ml_collections import ConfigDict

from aigc_jax import adversary
from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "shapes:2"
    config.task = "generate"
    config.image_size = 32
    config.method = "vqvae"
    network = {"name": "vqvae", "width": 64, "halvings": 1, "blocks": 2, "block_width": 16}
    # Without blocks a code depends on few pixels around it, and is easily foretold.
    config.encoder = ConfigDict({**network, "blocks": 0, "embedding_dim": 16})
    config.decoder = ConfigDict(network)
    config.codebook = ConfigDict(
        {
            "size": 512,
            "decay": 0.99,  # of its moving averages, per step
            "commitment": 0.25,  # weight of the encoder's distance to its codes
            "revive_below": 0.05,  # codes used less than this share of even use are replaced
        }
    )
    config.reconstruction = "l2"  # l2 | l1
    config.data_variance = 0.484  # of the training set's pixels in [-1, 1]
    config.adversary = adversary.defaults()
    config.batch_size = 64
    config.num_train_steps = 3000
    config.steps_per_dispatch = 5
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 1000
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    return configs.finish(config, arg)
