"""GMP* (Kurtic and Alistarh, 2022, arXiv:2210.06384): gradual magnitude pruning that is given what it needs.

    python launch.py --config=configs/gmp.py --config.model.init_from=CHECKPOINT --config.distill.teacher=DENSE_RUN

Global magnitude, a cubic course of the sparsity that starts with a first step to 70 %, a learning rate that falls on a
line and is rewound every two epochs, a dense network as the teacher. The first two of 30 epochs are dense, the last two
keep the masks. The masks are updated once per epoch. Learning rate, lengths and temperature are in the manner of the
authors' recipes, and have not been measured here.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.train.epochs = 30
    config.train.batch_size = 32
    config.train.learning_rate = 8e-5
    config.train.lr_schedule = "linear"
    config.train.rewind_epochs = 2
    config.train.warmup_fraction = 0.0
    config.pruning.method = "magnitude"
    config.pruning.scope = "global"
    config.pruning.structure = "encoder"
    config.pruning.schedule = "cubic"
    config.pruning.start_epoch = 2
    config.pruning.end_epoch = 28
    config.pruning.start_sparsity = 0.7
    config.pruning.end_sparsity = 0.9
    config.distill.temperature = 5.5
    config.distill.weight = 1.0
    return config
