"""Runs one experiment; in a checkout this is `prune-jax train`.

    python launch.py --config=configs/spt_base.py [--config.KEY=VALUE ...] [--workdir=DIR]

docs/reference_config.md lists every key with its default.
"""

import sys

from prune_jax.__main__ import leave, run

if __name__ == "__main__":
    leave(lambda: run("prune_jax.run.launch", sys.argv[1:], "launch.py"))
