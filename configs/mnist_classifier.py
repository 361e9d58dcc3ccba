"""A small CNN that reads MNIST: the judge of generated ones.

A minute and a half on 2 CPU cores; 99% of the test images.

```
aigc train --config=configs/mnist_classifier.py
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:mnist"
    config.image_size = 32
    config.method = "classifier"
    config.model = ConfigDict({"name": "classifier", "width": 16})
    config.label_smoothing = 0.0
    config.batch_size = 64
    config.num_train_steps = 1500
    config.optimizer.lr = 2e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    return configs.finish(config, arg)
