"""Soft weight-sharing on LeNet-300-100: a dense pretraining, a retraining under the mixture prior, the quantising.

    python launch.py --config=configs/sws_lenet.py --config.data.dir=MNIST_FOLDER

Without data.dir scikit-learn's digits stand in for MNIST. The pretraining is a run of its own in WORKDIR/pretrain;
--config.model.init_from=RUN starts from another run's network instead. --config.model.name chooses the network.

What differs from the paper: weight decay, which leaves the prior fewer small weights to remove; a prior ten times as
heavy; components that start and end narrower; a rate that falls to 0. With the paper's values the component at 0 is
still 0.043 wide after 15 epochs, for the loss holds on to too many small weights, and quantising destroys the network.
pi0 below the paper's leaves the weights between 0 and the other means to the latter. The paper's values are

    --config.pretrain.epochs=100 --config.pretrain.learning_rate=1e-3
    --config.train.learning_rate=5e-4 --config.train.lr_schedule=constant --config.train.weight_decay=0
    --config.sws.pi0=0.99 --config.sws.tau=0.003 --config.sws.deviation=0.25 --config.sws.zero_beta=2
    --config.sws.alpha=250 --config.sws.gammas_learning_rate=3e-3

A smaller file at a higher accuracy comes from pruning first: configs/sws_pruned.py.
"""

from configs import lenet


def get_config():
    config = lenet.get_config()
    config.pretrain.epochs = 40
    config.pretrain.learning_rate = 2e-3
    config.train.epochs = 30
    config.train.learning_rate = 1e-3
    config.pruning.method = "sws"
    config.sws.pi0 = 0.97
    config.sws.tau = 0.03
    config.sws.deviation = 0.1
    config.sws.zero_beta = 0.2
    config.sws.alpha = 2.5e3
    config.sws.gammas_learning_rate = 1e-2
    return config
