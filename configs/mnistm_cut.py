"""CUT from MNIST-M (digits blended with photos; Ganin et al. 2016) to MNIST, no labels, one way.

The domains are made of different digits: 30,000 each. A CPU core takes 12 minutes.

```
aigc train --config=configs/mnistm_cut.py
aigc evaluate --fake runs/mnistm_cut
aigc translate --workdir runs/mnistm_cut --input photos_of_digits/ --out digits/
```
FastCUT is `--config.nce_weight=10 --config.identity=False --config.flip_equivariance=True`.
"""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import cut


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "cut"
    config.update(cut.defaults())
    config.task = "unpaired"
    config.data.a = "mnistm:train[:30000]"
    config.data.b = "tfds:mnist/train[30000:]"
    config.eval.a = "mnistm:test"
    config.eval.b = "tfds:mnist/test"
    config.eval.paired = True  # the digit that each image was blended of
    config.image_size = 32
    config.channels = 3
    # In the small: CycleGAN's strided layers, fewer and shorter vectors than the paper's 256.
    config.generator.resample = "transpose"
    config.generator.width = 16
    config.generator.blocks = 4
    config.patches = config.head_features = 64
    config.adversary.discriminator.antialias = False
    config.adversary.discriminator.width = 32
    config.adversary.discriminator.num_layers = 2  # sees 34x34 pixels
    config.batch_size = 8
    config.num_train_steps = 6000
    config.optimizer.lr = 4e-4
    config.optimizer.schedule = "linear"
    config.optimizer.hold = 0.5
    config.log_every = 100
    config.eval.num_samples = 2000
    config.eval.extractor = "mnist_classifier" + (":smoke" if arg == "smoke" else "")
    return configs.finish(config, arg)
