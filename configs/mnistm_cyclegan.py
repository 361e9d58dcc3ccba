"""CycleGAN between MNIST-M (digits blended with photos; Ganin et al. 2016) and MNIST, no labels.

The domains are made of different digits: 30,000 each. A CPU core takes 40 minutes.

```
aigc train --config=configs/mnistm_cyclegan.py
aigc evaluate --fake runs/mnistm_cyclegan
aigc translate --workdir runs/mnistm_cyclegan --input photos_of_digits/ --out digits/
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
    config.data.a = "mnistm:train[:30000]"
    config.data.b = "tfds:mnist/train[30000:]"
    config.eval.a = "mnistm:test"
    config.eval.b = "tfds:mnist/test"
    config.eval.paired = True  # the digit that each image was blended of
    config.image_size = 32
    config.channels = 3
    config.generator.width = 16
    config.generator.blocks = 4
    config.adversary.discriminator.width = 32
    config.adversary.discriminator.num_layers = 2  # sees 34x34 pixels
    # A photo can't come back from a digit: asked to, the generators would hide it there.
    config.cycle_weights = (1.0, 10.0)
    config.batch_size = 8
    config.num_train_steps = 12_000
    config.optimizer.lr = 4e-4
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.4
    config.log_every = 100
    config.eval.num_samples = 2000
    config.eval.extractor = "mnist_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
