"""Soft weight-sharing as published (Ullrich, Meeds and Welling, ICLR 2017, arXiv:1702.04008), from its own settings.

    python launch.py --config=configs/sws_paper.py --config.data.dir=MNIST_FOLDER --workdir=results_paper

The tutorial's convolutional network: 100 epochs of pretraining by Adam at 1e-3, a run of its own in WORKDIR/pretrain,
then 30 epochs of retraining with the weights at 5e-4, the means at 1e-4, and log-precisions and log-proportions at
3e-3; batches of 256, no weight decay, tau 0.003, pi_0 0.99, every component 0.25 wide at first.
--config.model.name=lenet_300_100 or lenet5_caffe chooses the paper's other networks.
docs/results/soft_weight_sharing.md has the results. configs/sws_lenet.py's own settings serve LeNet-300-100.
"""

from configs import lenet


def get_config():
    config = lenet.get_config()
    config.model.name = "tutorial"
    config.data.source = "idx"  # tau is for MNIST's number of images
    config.pretrain.epochs = 100
    config.pretrain.learning_rate = 1e-3
    config.train.epochs = 30
    config.train.learning_rate = 5e-4
    config.train.lr_schedule = "constant"
    config.train.weight_decay = 0.0
    config.pruning.method = "sws"
    config.sws.components = 16
    config.sws.pi0 = 0.99
    config.sws.tau = 0.003
    config.sws.mean_range = 0.6
    config.sws.deviation = 0.25
    config.sws.zero_alpha = 5e3
    config.sws.zero_beta = 2.0
    config.sws.alpha = 2.5e2
    config.sws.beta = 0.1
    config.sws.means_learning_rate = 1e-4
    config.sws.gammas_learning_rate = 3e-3
    config.sws.rhos_learning_rate = 3e-3
    return config
