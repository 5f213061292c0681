"""A few minutes on a CPU, no network: a tiny transformer on generated sentences, pruned by SPT from 0 to 90 percent.

The pruning starts once the dense network has nearly stopped rising, which takes twice the usual sentences, and an
epoch after the last cut trains what is left.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "builtin"
    config.data.task = "single"
    config.data.max_len = 32
    config.data.builtin_train_size = 16_000
    config.train.epochs = 8
    config.train.batch_size = 32
    config.train.learning_rate = 5e-4
    config.pruning.method = "spt"
    config.pruning.start_epoch = 3
    config.pruning.sparsity_steps = (50, 70, 80, 90)
    return config
