"""configs/sws_lenet.py on scikit-learn's digits alone: under a minute on a CPU, with no data to fetch.

There are 1,437 training images for MNIST's 60,000, so the batches are smaller and the epochs more; a larger tau,
and precisions that start higher, move faster and have a narrower prior, let the weights reach their means in few steps.
"""

from configs import sws_lenet


def get_config():
    config = sws_lenet.get_config()
    config.data.task = "digits"
    config.data.source = "builtin"
    config.pretrain.epochs = 40
    config.train.epochs = 90
    config.train.batch_size = 48
    config.train.eval_batch_size = 360
    config.train.learning_rate = 1e-3
    config.train.lr_schedule = "linear"
    config.sws.tau = 0.015
    config.sws.deviation = 0.1
    config.sws.zero_beta = 0.2
    config.sws.alpha = 2.5e3
    config.sws.gammas_learning_rate = 1e-2
    return config
