"""A small decoder trained on running text and pruned to 80 % while it trains, evaluated by perplexity.

    python launch.py --config=configs/decoder.py --config.data.train=FILE_OR_FOLDER

The text is UTF-8; without --config.data.train it is what Python's help says of the language, a file of the standard
library. A token is a byte here, and its last tenth is evaluated on. A few minutes on a CPU.
"""

import importlib.util

from configs import common


def get_config():
    config = common.get_config()
    config.model.name = "decoder"
    config.model.num_layers = 2
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.d_ff = 256
    config.data.task = "lm"
    config.data.source = "text"
    config.data.train = importlib.util.find_spec("pydoc_data.topics").origin
    config.data.max_len = 128
    config.train.epochs = 6
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.lr_schedule = "cosine"
    config.pruning.method = "magnitude"
    config.pruning.structure = "encoder"
    config.pruning.start_epoch = 1
    config.pruning.sparsity_steps = (40, 60, 70, 80)
    return config
