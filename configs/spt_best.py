"""SPT whose exploration sets each layer's budget, movement choosing inside it: the best of benchmarks/credit.py.

The rest is configs/spt_base.py's.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.pruning.method = "spt"
    config.pruning.scope = "global"  # as credit=layer works, whatever is said here
    config.spt.credit = "layer"
    config.spt.inside = "movement"
    return config
