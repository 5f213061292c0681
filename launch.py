"""Runs one experiment.

    python launch.py --config=configs/spt_base.py [--config.KEY=VALUE ...] [--workdir=DIR]

configs/common.py lists every key with its default. An unfinished run of the same config in DIR is resumed.
"""

import re
import sys

from absl import app, flags
from ml_collections import config_flags

from prune_jax import config as config_lib
from prune_jax.errors import Stopped, UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; override with --config.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the results go; default results_<method>.")


def _flag_mistake(argv: list[str], error: Exception) -> str:
    """What to tell the user of a failed parse, in terms of the config's keys."""
    from configs import common

    defaults = common.get_config()
    for arg in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)(?:=(.*))?$", arg)
        if not match:
            continue
        key, value = match.groups()
        node = defaults
        try:
            for name in key.split(".")[:-1]:
                node = node[name]
            wanted = node.get_type(key.split(".")[-1])
        except (KeyError, AttributeError, TypeError):
            return config_lib.unknown_key_message(key, defaults)
        if isinstance(error, flags.IllegalFlagValueError) and str(error).startswith(f"flag --config.{key}="):
            kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}.get(
                wanted.__name__, "single keys below it, as in --config.model.size=tiny" if wanted is not tuple else
                "numbers separated by commas"
            )  # fmt: skip
            return f"config.{key} is {value!r}; allowed: {kind}"
    reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OSError):
        paths = [arg.split("=", 1)[1] for arg in argv if arg.startswith(("--config=", "-config="))]
        return f"cannot load the config file {paths[-1] if paths else ''}: {reasons[-1]}"
    return reasons[-1] if reasons else type(error).__name__


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS.help or CONFIG.value is None:
            print(__doc__ + flags.FLAGS.main_module_help())
            sys.exit(0 if flags.FLAGS.help else 2)
        CONFIG.value.keys()  # a file that could not be loaded raises at its first use
    except Exception as error:  # config_flags lets whatever a config file raises through
        sys.exit(_complain(_flag_mistake(argv, error), 2))
    if len(rest) > 1:
        sys.exit(_complain(f"unexpected argument {rest[1]!r}; flags start with --", 2))
    return rest


def _complain(message: object, code: int) -> int:
    print(f"launch.py: {message}", file=sys.stderr, flush=True)
    return code


def main(argv: list[str]) -> int:
    del argv
    try:
        config, _ = config_lib.resolve(CONFIG.value)
        from prune_jax import train  # jax is loaded only for a config that can run

        train.train_and_evaluate(config, WORKDIR.value or f"results_{config.pruning.method}")
    except UserError as error:
        return _complain(error, 2)
    except Stopped as error:
        return _complain(error, error.exit_code)
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
