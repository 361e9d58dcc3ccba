"""CycleGAN's maps (Zhu et al. 2017): aerial photos and maps, 9 blocks, 256 pixels, batches of 1.

1,096 images each. Published: photo to map within 5 grey levels 41.8% of the pixels, RMSE 28.15
(Fu et al. 2019, table 4). The sets are not paired here: TFDS orders each by itself. Not run here.

```
aigc train --config=configs/maps_cyclegan.py       # TFDS downloads the images, or:
aigc train --config=configs/maps_cyclegan.py --config.data.a=folder:maps/trainA \\
    --config.data.b=folder:maps/trainB --config.eval.a=folder:maps/testA \\
    --config.eval.b=folder:maps/testB
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import cyclegan


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "cyclegan"
    config.update(cyclegan.defaults())
    config.task = "unpaired"
    config.data.a = "tfds:cycle_gan/maps/trainA"
    config.data.b = "tfds:cycle_gan/maps/trainB"
    config.eval.a = "tfds:cycle_gan/maps/testA"
    config.eval.b = "tfds:cycle_gan/maps/testB"
    config.data.load_size = 286  # resized to, and cropped from
    config.data.flip = True
    config.image_size = 256
    config.channels = 3
    config.batch_size = 1
    config.num_train_steps = 219_200  # 200 epochs of 1,096
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.ema.half_life = 0.0
    config.sample_every = config.checkpoint_every = 5480
    config.eval.extractor = "inception"
    config.eval.metrics = "fid"
    return configs.finish(config, arg)
