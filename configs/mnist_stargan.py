"""StarGAN (Choi et al. 2018) on MNIST: one generator writes any digit as any other, in its hand.

At the paper's 128 pixels the widths are 64, blocks 6, d_steps 5, batches of 16, 40,000 steps, the
learning rate 1e-4. Here a CPU core takes 15 minutes.

```
aigc train --config=configs/mnist_stargan.py
aigc translate --workdir runs/mnist_stargan --input digits/ --label 7 --out sevens/
```
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import stargan


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "stargan"
    config.update(stargan.defaults())
    config.data.source = "tfds:mnist"
    config.image_size = 32
    config.generator.width = 16
    config.generator.blocks = 3
    config.discriminator.width = 32
    config.d_steps = 3
    config.batch_size = 16
    config.num_train_steps = 3000
    config.optimizer.lr = 2e-4
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.log_every = 100
    config.eval.num_samples = 2000
    config.eval.extractor = "mnist_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
