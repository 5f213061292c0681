"""One run of the study in the README: a tiny network trained on SST-2, pruned on another GLUE task or more of its own.

    prune-jax sweep --config=configs/study_tiny.py -p baseline,magnitude,movement,spt -t sst2,mrpc \\
        --seeds 0,1,2 --set data.dir=GLUE_FOLDER --set model.init_from=results_dense --out results_study

results_dense is a run of configs/tiny_from_scratch.py. A dense epoch, then 50, 70, 90 and 95 percent closed at the ends
of the next four, and an epoch of retraining after the last, on 1,600 training examples: the study takes minutes, and
tells methods apart rather than how good they can be.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.size = "tiny"
    config.data.source = "tsv"
    config.data.max_len = 64
    config.data.max_train_examples = 1600
    config.train.epochs = 6
    config.train.batch_size = 64
    config.train.learning_rate = 3e-4
    config.pruning.start_epoch = 1
    config.pruning.sparsity_steps = (50, 70, 90, 95)
    config.movement.frequency = 5  # an epoch has 25 steps
    return config
