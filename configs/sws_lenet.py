"""Soft weight-sharing on LeNet-300-100: a dense pretraining, a retraining under the mixture prior, the quantising.

    python launch.py --config=configs/sws_lenet.py --config.data.dir=MNIST_FOLDER

Without data.dir scikit-learn's digits stand in for MNIST: under a minute on a CPU, with no data to fetch. The settings
follow the data. There are 1,437 training images for MNIST's 60,000, so the batches are smaller and the epochs more.
tau is divided by their number: the smaller one is the heavier prior. A small pi_0 leaves a network that has no weights
to spare a tenth of them. Those of the digits were chosen on 300 held-out training images.

The pretraining is a run of its own in WORKDIR/pretrain; --config.model.init_from=RUN starts from another run's network
instead. --config.model.name chooses the network.

What differs from the paper: weight decay, which leaves the prior fewer small weights to remove; a prior ten times as
heavy; components that start and end narrower; a rate that falls to 0. pi0 below the paper's leaves the weights between
0 and the other means to the latter. On this network, LeNet-300-100, the paper's values leave too many small weights:
after 15 epochs of retraining the component at 0 is still 0.043 wide, and quantising destroys the network; as published,
after 100 epochs of pretraining and 30 of retraining, it costs 0.5 to 1.6 points. On the tutorial's convolutional net
they work as the paper says: configs/sws_paper.py.

A smaller file at a higher accuracy comes from pruning first: configs/sws_pruned.py.
"""

from configs import lenet


def get_config():
    config = lenet.get_config()
    config.pretrain.epochs = 40
    config.pretrain.learning_rate = lenet.by_data(config, mnist=2e-3, digits=1e-3)
    config.train.epochs = lenet.by_data(config, mnist=30, digits=200)
    config.train.batch_size = lenet.by_data(config, mnist=256, digits=48)
    config.train.eval_batch_size = lenet.by_data(config, mnist=1000, digits=360)
    config.train.learning_rate = 1e-3
    config.train.weight_decay = lenet.by_data(config, mnist=0.1, digits=0.0)
    config.pruning.method = "sws"
    config.sws.pi0 = lenet.by_data(config, mnist=0.97, digits=0.9)
    config.sws.tau = lenet.by_data(config, mnist=0.03, digits=0.015)
    config.sws.deviation = 0.1
    config.sws.zero_beta = 0.2
    config.sws.alpha = 2.5e3
    config.sws.gammas_learning_rate = 1e-2
    return config
