"""The tiny model trained from scratch, dense, on a GLUE task in tsv files: where the README's tables start from.

    python launch.py --config=configs/tiny_from_scratch.py --config.data.dir=GLUE_FOLDER --workdir=results_dense

Weights that start at random want a larger learning rate than 2e-5. GLUE's sentences are short: finer bucket lengths
than the default pay for the compilations they cost.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "tsv"
    config.data.buckets = (8, 16, 24, 32, 48, 64, 96, 128)
    config.train.epochs = 3
    config.train.batch_size = 256
    config.train.learning_rate = 6e-4
    config.pruning.method = "baseline"
    return config
