"""The tiny model trained from scratch on a GLUE task in tsv files: the tables of the README.

    python launch.py --config=configs/tiny_from_scratch.py --config.data.dir=GLUE_FOLDER --config.pruning.method=spt

One dense epoch, then 50, 70, 90 and 95 percent for two epochs each: the first of the two is measured right after its
pruning, the second after an epoch of retraining. A weight that starts at random wants a larger learning rate than 2e-5.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "tsv"
    config.train.epochs = 9
    config.train.batch_size = 256
    config.train.learning_rate = 6e-4
    config.pruning.start_epoch = 1
    config.pruning.sparsity_steps = (50, 50, 70, 70, 90, 90, 95, 95)
    return config
