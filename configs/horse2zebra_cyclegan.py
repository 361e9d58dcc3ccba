"""CycleGAN's horses and zebras as Zhu et al. 2017 published it: 9 blocks, 256 pixels, batches of 1.

1,067 and 1,334 images; 200 epochs of the larger set, the learning rate constant for the first half.
Published FID of the authors' PyTorch weights (identity weight 0.5 x 10): horse to zebra 62.1, zebra
to horse 138.6; by mmagic 64.5 and 141.2. Not run here.

```
aigc train --config=configs/horse2zebra_cyclegan.py       # TFDS downloads the images, or:
aigc train --config=configs/horse2zebra_cyclegan.py --config.data.a=folder:horse2zebra/trainA \\
    --config.data.b=folder:horse2zebra/trainB --config.eval.a=folder:horse2zebra/testA \\
    --config.eval.b=folder:horse2zebra/testB
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
    config.data.a = "tfds:cycle_gan/horse2zebra/trainA"
    config.data.b = "tfds:cycle_gan/horse2zebra/trainB"
    config.eval.a = "tfds:cycle_gan/horse2zebra/testA"
    config.eval.b = "tfds:cycle_gan/horse2zebra/testB"
    config.data.load_size = 286  # resized to, and cropped from
    config.data.flip = True
    config.image_size = 256
    config.channels = 3
    config.batch_size = 1
    config.num_train_steps = 266_800  # 200 epochs of 1,334
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.ema.half_life = 0.0
    config.sample_every = config.checkpoint_every = 6670
    config.eval.extractor = "inception"
    config.eval.metrics = "fid"
    return configs.finish(config, arg)
