"""CUT's horses to zebras as Park et al. 2020 published it: 9 blocks, 256 pixels, batches of 1.

1,067 and 1,334 images; 400 epochs, the learning rate constant for the first half. Published FID:
45.5 (FastCUT 73.4, CycleGAN 77.2), of the best epoch; of the last about 61 to 68. There images are
no longer cropped while the learning rate falls; here they are. Not run here.

```
aigc train --config=configs/horse2zebra_cut.py
```
FastCUT is `--config.nce_weight=10 --config.identity=False --config.flip_equivariance=True
--config.num_train_steps=266800 --config.optimizer.hold=0.75`.
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import cut


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "cut"
    config.update(cut.defaults())
    config.task = "unpaired"
    config.data.a = "tfds:cycle_gan/horse2zebra/trainA"
    config.data.b = "tfds:cycle_gan/horse2zebra/trainB"
    config.eval.a = "tfds:cycle_gan/horse2zebra/testA"
    config.eval.b = "tfds:cycle_gan/horse2zebra/testB"
    config.data.load_size = 286  # resized to, and cropped from
    config.data.flip = True
    config.image_size = 256
    config.channels = 3
    config.batch_size = 1
    config.num_train_steps = 533_600  # 400 epochs of 1,334
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.ema.half_life = 0.0
    config.sample_every = config.checkpoint_every = 6670
    config.eval.extractor = "inception"
    config.eval.metrics = "fid"
    return configs.finish(config, arg)
