"""What the LeNet experiments share: the network, its data, its optimiser. On its own, a dense LeNet-300-100.

    python launch.py --config=configs/lenet.py --config.data.dir=MNIST_FOLDER

--config.model.name chooses the network; without data.dir scikit-learn's digits stand in for MNIST.
"""

from types import SimpleNamespace

from ml_collections import config_dict

from configs import common


def by_data(config, mnist, digits):
    """A value that follows the data: one for MNIST's 60,000 images, one for the 1,437 digits without data.dir.

    It is read when data.dir is known, and a flag that sets the key wins.
    """
    choice = SimpleNamespace(fn=lambda _, folder: mnist if folder else digits, args=[config.data.get_ref("dir")])
    return config_dict.FieldReference(mnist, op=choice)


def get_config():
    config = common.get_config()
    config.model.name = "lenet_300_100"
    config.model.init_checkpoint = "last"  # the best would be chosen on the test images
    config.data.task = "mnist"
    config.data.source = "auto"
    config.distill.checkpoint = "last"
    config.distill.weight = 1.0
    config.train.epochs = 40
    config.train.batch_size = 256
    config.train.eval_batch_size = 1000
    config.train.learning_rate = 2e-3
    config.train.lr_schedule = "linear"
    config.train.warmup_fraction = 0.0
    config.train.weight_decay = 0.1
    config.train.clip_norm = 0.0
    config.pruning.method = "baseline"
    return config
