"""Soft weight-sharing on a trained transformer: all its gated kernels under the mixture prior, SST-2 from tsv files.

    python launch.py --config=configs/sws_tiny.py --config.data.dir=GLUE_FOLDER --config.model.init_from=RUN

RUN is the folder of a tiny run, such as configs/tiny_from_scratch.py with --config.pruning.method=baseline.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "tsv"
    config.train.epochs = 3
    config.train.batch_size = 256
    config.train.learning_rate = 5e-4
    config.train.warmup_fraction = 0.0
    config.train.weight_decay = 0.0
    config.pruning.method = "sws"
    return config
