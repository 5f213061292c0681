"""A dense LeNet-300-100, and the same network pruned to 97.5 %: what configs/sws_pruned.py compresses further.

    python launch.py --config=configs/lenet_pruned.py --config.data.dir=MNIST_FOLDER --workdir=results_dense \\
        --config.pruning.method=baseline
    python launch.py --config=configs/lenet_pruned.py --config.data.dir=MNIST_FOLDER --workdir=results_pruned \\
        --config.model.init_from=results_dense --config.distill.teacher=results_dense

SPT sets the budget of each layer and movement chooses inside, and the dense network teaches the pruned one, which was
worth half a percent. The rest is configs/lenet.py's.
"""

from configs import lenet


def get_config():
    config = lenet.get_config()
    config.pruning.method = "spt"
    config.pruning.start_epoch = 0
    config.pruning.sparsity_steps = (40, 60, 70, 76, 80, 83, 86, 88, 90, 91, 92, 93, 94, 95, 95.5, 96, 96.5, 97, 97.5)
    config.spt.credit = "layer"
    config.spt.inside = "movement"
    return config
