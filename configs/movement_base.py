"""Movement pruning of the base model on SST-2: 25 epochs, batch 96, learning rate 2e-5, 128 tokens."""

from configs import common


def get_config():
    config = common.get_config()
    config.pruning.method = "movement"
    return config
