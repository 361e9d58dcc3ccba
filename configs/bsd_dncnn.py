"""DnCNN (Zhang et al. 2017) on the Berkeley crops."""

from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax.methods import restoration


def get_config(arg: str = "") -> ConfigDict:
    config = configs.default()
    config.method = "restoration"
    config.update(restoration.defaults())
    config.task = "restore"
    config.data.source = "folder:bsd/train400"
    config.data.degrade = "noise(0..55)"
    config.data.load_size = 180
    config.data.flip = True
    config.data.turn = True
    config.image_size = 64
    config.model.shuffle = 2
    config.model.depth = 15
    config.batch_size = 8
    config.num_train_steps = 1000
    config.optimizer.lr = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.schedule = "cosine"
    config.eval.source = "folder:bsd/Set68"
    return configs.finish(config, arg)
