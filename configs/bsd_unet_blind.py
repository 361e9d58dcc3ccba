"""One blind denoiser for every level of noise: a small U-Net on the Berkeley crops.

DRUNet's blocks (Zhang et al. 2021) without biases (Mohan et al. 2020) on blocks of 2x2 pixels:
3.6 million parameters, noise of 0 to 55 grey levels, L1. A CPU core takes 46 minutes. What training
prints is of test images cropped and shrunk to 180 pixels; the literature's protocol is the second
command: 31.23, 28.82 and 25.91 dB for 15, 25 and 50 grey levels.

```
aigc train --config=configs/bsd_unet_blind.py
aigc restore --workdir runs/bsd_unet_blind --input bsd/Set68 --degrade "noise(25)" --out restored
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import restoration


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "restoration"
    config.update(restoration.defaults())
    config.task = "restore"
    config.data.source = "folder:bsd/train400"
    config.data.degrade = "noise(0..55)"
    config.data.load_size = 180  # the crops' own
    config.data.flip = True
    config.data.turn = True
    config.image_size = 64
    config.model = ConfigDict(
        {"name": "unet", "width": 64, "levels": 2, "blocks": 2, "shuffle": 2, "use_bias": False}
    )
    config.loss = "l1"
    config.batch_size = 8
    config.num_train_steps = 14_000
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.warmup_steps = 300
    config.optimizer.schedule = "cosine"
    config.log_every = 100
    config.sample_every = config.checkpoint_every = 1000
    config.eval.source = "folder:bsd/Set68"
    config.eval.batch_size = 17
    return configs.finish(config, arg)
