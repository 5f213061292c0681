"""A few minutes on a CPU, no network: a tiny transformer on generated sentences, pruned by SPT from 0 to 90 percent.

The pruning starts once the dense network has stopped rising: of 16 dense epochs, the ninth is the best.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "builtin"
    config.data.task = "single"
    config.data.max_len = 32
    config.train.epochs = 15
    config.train.batch_size = 32
    config.train.learning_rate = 5e-4
    config.pruning.method = "spt"
    config.pruning.start_epoch = 9
    config.pruning.sparsity_steps = (30, 50, 70, 80, 90)
    return config
