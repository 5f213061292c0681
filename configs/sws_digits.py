"""configs/sws_lenet.py on scikit-learn's digits alone: under a minute on a CPU, with no data to fetch.

There are 1,437 training images for MNIST's 60,000, so the batches are smaller and the epochs more. tau is divided by
their number: the smaller one is the heavier prior. A small pi_0 leaves a network that has no weights to spare a tenth
of them; the settings were chosen on 300 held-out training images.
"""

from configs import sws_lenet


def get_config():
    config = sws_lenet.get_config()
    config.data.task = "digits"
    config.data.source = "builtin"
    config.pretrain.learning_rate = 1e-3
    config.train.epochs = 200
    config.train.batch_size = 48
    config.train.weight_decay = 0.0
    config.train.eval_batch_size = 360
    config.sws.tau = 0.015
    config.sws.pi0 = 0.9
    return config
