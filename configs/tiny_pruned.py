"""A tiny model of configs/tiny_from_scratch.py pruned to 50, 70, 90 and 95 percent: the README's table of methods.

    python launch.py --config=configs/tiny_pruned.py --config.data.dir=GLUE_FOLDER \\
        --config.model.init_from=results_dense --config.pruning.method=spt

Each sparsity is reached at the end of an epoch and retrained for the next. metrics.csv tells of it twice: eval_metric
right after the pruning, metric_before_pruning of the next row after that epoch of retraining.
"""

from configs import tiny_from_scratch


def get_config():
    config = tiny_from_scratch.get_config()
    config.train.epochs = 5
    config.train.learning_rate = 3e-4
    config.pruning.method = "magnitude"
    config.pruning.start_epoch = 0
    config.pruning.sparsity_steps = (50, 70, 90, 95)
    return config
