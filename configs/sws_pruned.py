"""Soft weight-sharing on a network that is pruned already: 15 epochs that make its weights a few values.

    python launch.py --config=configs/sws_pruned.py --config.data.dir=MNIST_FOLDER --workdir=results_sws \\
        --config.model.init_from=results_pruned --config.distill.teacher=results_dense

The two runs are those of configs/lenet_pruned.py. Gates that are closed stay closed, so that the prior has little left
to prune: it is light (the paper's tau) and its components start narrow. config.sws.pi0 is best set to the sparsity.
"""

from configs import lenet_pruned


def get_config():
    config = lenet_pruned.get_config()
    config.data.source = "idx"  # the settings are for MNIST's number of images
    config.train.epochs = 15
    config.train.learning_rate = 5e-4
    config.train.weight_decay = 0.03
    config.pruning.method = "sws"
    config.sws.pi0 = 0.975
    config.sws.tau = 0.003
    config.sws.deviation = 0.03
    config.sws.zero_beta = 0.2
    config.sws.alpha = 2.5e3
    config.sws.gammas_learning_rate = 1e-2
    return config
