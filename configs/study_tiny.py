"""One run of the study in the README: the tiny model from scratch on RTE or MRPC in tsv files.

    python -m prune_jax.sweep --config=configs/study_tiny.py -p baseline,magnitude,movement,spt -t rte,mrpc \\
        --seeds 0,1,2 --set data.dir=GLUE_FOLDER -parallel --out results_study

Three dense epochs, then 50, 70, 90 and 95 percent closed at the ends of the next four, an epoch of retraining at each.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "tsv"
    config.data.task = "rte"
    config.train.epochs = 8
    config.train.batch_size = 32
    config.train.learning_rate = 3e-4
    config.pruning.start_epoch = 3
    config.pruning.sparsity_steps = (50, 70, 90, 95)
    config.movement.frequency = 20  # an epoch has 78 steps (RTE) or 115 (MRPC)
    return config
