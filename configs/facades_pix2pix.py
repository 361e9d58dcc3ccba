"""pix2pix's facades, labels to photos, as Isola et al. 2017 published it (section 6.2).

The data: 400 images in train/, 106 in test/, photo and labels side by side; the right half is the
source. Published FID 119.1 (the authors' PyTorch weights), 125.0 (mmagic), by dropout and the
batch's statistics at test, where this takes the running ones. Not run here.

```
aigc train --config=configs/facades_pix2pix.py --config.data.source=pairs:facades
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import pix2pix


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "pix2pix"
    config.update(pix2pix.defaults())
    config.task = "pairs"
    config.data.source = "pairs:facades"
    config.data.swap = True
    config.data.load_size = 286  # resized to, and cropped from
    config.data.flip = True
    config.image_size = 256
    config.batch_size = 1
    config.num_train_steps = 80_000  # 200 epochs of 400, the learning rate constant
    config.ema.half_life = 0.0
    config.sample_every = config.checkpoint_every = 4000
    config.eval.extractor = "inception"
    config.eval.metrics = "fid"
    return configs.finish(config, arg)
