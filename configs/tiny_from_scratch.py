"""The tiny model trained from scratch on a GLUE task in tsv files: the tables of the README.

    python launch.py --config=configs/tiny_from_scratch.py --config.data.dir=GLUE_FOLDER --config.pruning.method=spt

One dense epoch, then 50, 70, 90 and 95 percent closed at the ends of the next four, and a last epoch of retraining.
metrics.csv tells of each sparsity twice: eval_metric right after the pruning, and metric_before_pruning of the next
row, after an epoch of retraining. Weights that start at random want a larger learning rate than 2e-5.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "tsv"
    config.train.epochs = 6
    config.train.batch_size = 256
    config.train.learning_rate = 6e-4
    config.pruning.start_epoch = 1
    config.pruning.sparsity_steps = (50, 70, 90, 95)
    return config
