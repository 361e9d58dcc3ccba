"""Class-conditional DCGAN on MNIST, 32x32, at the textbook's width.

About 12 minutes on 2 CPU cores, a minute of it for the judge.

```
aigc train --config=configs/mnist_dcgan.py
aigc evaluate --fake runs/mnist_dcgan
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.data.source = "tfds:mnist"
    config.image_size = 32
    config.method = "gan"
    config.generator = ConfigDict({"name": "dcgan", "width": 64, "latent_dim": 100})
    config.discriminator = ConfigDict({"name": "dcgan", "width": 64})
    config.loss = "non_saturating"
    config.gradient_penalty = config.r1 = config.r2 = 0.0
    config.batch_size = 64
    config.num_train_steps = 6000
    config.optimizer.lr = 2e-4
    # The judge of the samples at the end, trained first.
    config.eval.extractor = "mnist_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
