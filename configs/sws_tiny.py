"""Soft weight-sharing on a pruned transformer: all its gated kernels under the mixture prior, SST-2 from tsv files.

    python launch.py --config=configs/sws_tiny.py --config.data.dir=GLUE_FOLDER \\
        --config.model.init_from=RUN --config.model.init_checkpoint=last

RUN is the folder of a tiny run that was pruned to 95 %. From a dense one add

    --config.sws.pi0=0.95 --config.sws.zero_alpha=1e6 --config.sws.zero_beta=9 --config.train.epochs=4

for a million weights outweigh the paper's prior on the precision of the component at zero, which then stays 0.011 wide,
and quantising destroys the network. A transformer's weights are smaller than a LeNet's (a standard deviation of 0.02
here): so are the range of the means and the widths. For other sparsities set config.sws.pi0.

The rest is configs/tiny_from_scratch.py's.
"""

from configs import tiny_from_scratch


def get_config():
    config = tiny_from_scratch.get_config()
    config.train.epochs = 2
    config.train.learning_rate = 5e-4
    config.train.lr_schedule = "linear"
    config.train.warmup_fraction = 0.0
    config.train.weight_decay = 0.0
    config.pruning.method = "sws"
    config.sws.pi0 = 0.97
    config.sws.mean_range = 0.1
    config.sws.deviation = 0.01
    config.sws.zero_beta = 0.02
    config.sws.alpha = 2.5e3
    config.sws.beta = 0.01
    config.sws.gammas_learning_rate = 1e-2
    return config
