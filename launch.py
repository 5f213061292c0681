"""Runs one experiment.

    python launch.py --config=configs/spt_base.py [--config.key=value ...] [--workdir=DIR]

configs/common.py lists every key with its default. An unfinished run of the same config in DIR is resumed.
"""

import contextlib
import logging
import os
import re
import sys
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from prune_jax import config as config_lib
from prune_jax.errors import Stopped, UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; override with --config.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the results go; default results_<method>.")


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "numbers separated by commas",
}
_NO_CONFIG = "--config is missing; for example --config=configs/quickstart.py (--help tells more)"


def _type_of(key: str, config):
    """The type of a dotted key of `config`; KeyError, AttributeError or TypeError if there is none."""
    *rooms, name = key.split(".")
    for room in rooms:
        config = config[room]
    return config.get_type(name)


def _flag_mistake(argv: list[str], error: Exception) -> str:
    """What to tell the user of a failed parse, in terms of the config's keys."""
    from configs import common

    defaults = common.get_config()
    files = [re.match(r"--?config(?:=(.*))?$", arg) for arg in argv[1:]]
    if not any(files):
        return _NO_CONFIG
    for arg in argv[1:]:
        if match := re.match(r"--?config\.([\w.]+)", arg):
            try:
                _type_of(match[1], defaults)
            except (KeyError, AttributeError, TypeError):
                return config_lib.unknown_key_message(match[1], defaults)
    if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
        kind = _KINDS.get(_type_of(match[1], defaults), "single keys below it, as in --config.model.size=tiny")
        return f"config.{match[1]} is {match[2]!r}; allowed: {kind}"
    reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = reasons[-1] if reasons else type(error).__name__
    if isinstance(error, flags.Error) and not str(error).startswith("flag --config="):
        return reason
    at, match = [(at, match) for at, match in enumerate(files) if match][-1]
    path = match[1] if match[1] is not None else argv[at + 2]
    reason = reason.removeprefix("Configuration is not available because of an earlier failure to load: ")
    return f"cannot load the config file {path!r}: {reason}"


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        config = CONFIG.value
        if config is not None:
            config.keys()  # a file that could not be loaded raises at its first use
    except SystemExit:  # absl leaves with 1 after printing --help
        sys.exit(0)
    except Exception as error:  # config_flags lets whatever a config file raises through
        sys.exit(_complain(_flag_mistake(argv, error), 2))
    if config is None:
        sys.exit(_complain(_NO_CONFIG, 2))
    if len(rest) > 1:
        sys.exit(_complain(f"unexpected argument {rest[1]!r}; flags start with --", 2))
    return rest


def _complain(message: object, code: int) -> int:
    print(f"launch.py: {message}", file=sys.stderr, flush=True)
    return code


def _keep_what_is_compiled(data_config) -> None:
    """Lets jax keep compiled steps beside the token cache, so that the next run of this shape starts without a wait.

    What the user has set in the environment holds. Through jax.config: resolving a config whose network comes from a
    checkpoint has imported jax already, which reads the environment only then.
    """
    import jax

    from prune_jax.data import cache_folder

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(data_config) / "compiled"))
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", 2**31)  # bytes; the least recently used go first
    # Under a limit, one entry without its time of use stops jax from keeping any other: jax was killed between writing
    # the two files, or a run without a limit wrote it.
    folder = jax.config.jax_compilation_cache_dir  # empty where the user wants none
    for entry in Path(folder).glob("*-cache") if folder else ():
        used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        if not used.exists():
            with contextlib.suppress(OSError):
                used.write_bytes(time.time_ns().to_bytes(8, "little"))


def main(argv: list[str]) -> int:
    del argv
    for name in ("jax", "datasets"):  # absl's app shows info: jax tells of each backend it lacks
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else every retry without a network is told, twice
    try:
        config, _ = config_lib.resolve(CONFIG.value)
        _keep_what_is_compiled(config.data)
        from prune_jax import train  # jax is loaded only for a config that can run

        # The config as given: train resolves it for itself, and tells the notes (a window once cut gives none).
        train.train_and_evaluate(CONFIG.value, WORKDIR.value or f"results_{config.pruning.method}")
    except UserError as error:
        return _complain(error, 2)
    except Stopped as error:
        return _complain(error, error.exit_code)
    except KeyboardInterrupt:  # before or after the training loop, which answers it itself
        return _complain("interrupted; what was saved is in order", 130)
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
