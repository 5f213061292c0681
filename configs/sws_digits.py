"""configs/sws_lenet.py on scikit-learn's digits, whatever data.dir is: under a minute on a CPU."""

from configs import sws_lenet


def get_config():
    config = sws_lenet.get_config().copy_and_resolve_references()  # no data.dir: the settings of the digits
    config.data.task = "digits"
    config.data.source = "builtin"
    return config
