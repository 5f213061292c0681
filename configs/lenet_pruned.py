"""A dense LeNet-300-100, and the same network pruned to 97.5 %: what configs/sws_pruned.py compresses further.

    python launch.py --config=configs/lenet_pruned.py --config.data.dir=MNIST_FOLDER --workdir=results_dense \\
        --config.pruning.method=baseline
    python launch.py --config=configs/lenet_pruned.py --config.data.dir=MNIST_FOLDER --workdir=results_pruned \\
        --config.model.init_from=results_dense --config.distill.teacher=results_dense

SPT sets the budget of each layer and movement chooses inside (configs/spt_best.py), and the dense network teaches the
pruned one, which was worth half a percent. --config.model.name chooses the network; without data.dir scikit-learn's
digits stand in for MNIST.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.model.name = "lenet_300_100"
    config.model.init_checkpoint = "last"  # the best would be chosen on the test images
    config.data.task = "mnist"
    config.data.source = "auto"
    config.train.epochs = 40
    config.train.batch_size = 256
    config.train.eval_batch_size = 1000
    config.train.learning_rate = 2e-3
    config.train.lr_schedule = "linear"
    config.train.warmup_fraction = 0.0
    config.train.weight_decay = 0.1
    config.train.clip_norm = 0.0
    config.distill.checkpoint = "last"
    config.distill.weight = 1.0
    config.pruning.method = "spt"
    config.pruning.start_epoch = 0
    config.pruning.sparsity_steps = (40, 60, 70, 76, 80, 83, 86, 88, 90, 91, 92, 93, 94, 95, 95.5, 96, 96.5, 97, 97.5)
    config.spt.credit = "layer"
    config.spt.inside = "movement"
    return config
