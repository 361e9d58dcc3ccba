"""pix2pix (Isola et al. 2017) gives CIFAR-10's grey images their colour: a U-Net and a PatchGAN.

A CPU core takes 13 minutes.

```
aigc train --config=configs/cifar10_pix2pix.py
aigc evaluate --fake runs/cifar10_pix2pix
aigc translate --workdir runs/cifar10_pix2pix --input grey/ --out colour/
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import pix2pix


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "pix2pix"
    config.update(pix2pix.defaults())
    config.task = "colorize"
    config.data.source = "tfds:cifar10"
    config.data.flip = True
    config.image_size = 32
    config.keep_luma = True  # what is known is kept, so that D judges colours
    config.generator.width = 32
    config.adversary.weight = 0.02  # beside l1_weight 100: colours that are likely, not loud
    config.adversary.discriminator.width = 32
    config.adversary.discriminator.num_layers = 2  # sees 34x34 pixels
    config.batch_size = 64
    config.num_train_steps = 4500
    config.optimizer.lr = 4e-4
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.eval.num_samples = 2000
    config.eval.extractor = "cifar10_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
