"""A small CNN that reads CIFAR-10: the judge of generated images, and a perceptual network.

Four minutes on one CPU core; 75% of the test images.

```
aigc train --config=configs/cifar10_classifier.py
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:cifar10"
    config.data.flip = True
    config.image_size = 32
    config.method = "classifier"
    config.model = ConfigDict({"name": "classifier", "width": 32})
    config.label_smoothing = 0.0
    config.batch_size = 64
    config.num_train_steps = 2500
    config.optimizer.lr = 2e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    return configs.finish(config, arg)
