"""DnCNN-S for noise of 25 grey levels, as Zhang et al. 2017 published it.

17 layers of 64 channels on crops of 40 pixels, 50 epochs of 212,000 of them in batches of 128 by
Adam; for DnCNN-B add --config.model.depth=20 --config.data.degrade="noise(0..55)"
--config.image_size=50. Published PSNR on BSD68: 29.23 dB (B: 29.16; for 15 and 50 grey levels S
31.73 and 26.23). Not run here: a CPU takes days; see configs/bsd_unet_blind.py for one that a CPU
trains. Here crops are not also taken of the images at 0.9 to 0.7 times their size. What training
prints is of test images cropped and shrunk to 180 pixels; the protocol is the second command's.

```
aigc train --config=configs/bsd_dncnn.py
aigc restore --workdir runs/bsd_dncnn --input bsd/Set68 --degrade "noise(25)" --out restored
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
    config.data.degrade = "noise(25)"
    config.data.load_size = 180  # the images' own size, which crops are cut of
    config.data.flip = True
    config.data.turn = True
    config.image_size = 40
    config.model = ConfigDict({"name": "dncnn", "depth": 17, "width": 64, "use_bias": True})
    config.batch_size = 128
    config.num_train_steps = 82_800  # 50 epochs of 212,000 crops
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"  # the paper's falls by logarithm, from 1e-3 to 1e-4
    config.sample_every = config.checkpoint_every = 2000
    config.eval.source = "folder:bsd/Set68"
    config.eval.batch_size = 17
    return configs.finish(config, arg)
