"""Runs one experiment.

    prune-jax train --config=FILE [--config.KEY=VALUE ...] [--workdir=DIR]

In a checkout `python launch.py` is the same command, as in

    python launch.py --config=configs/spt_base.py --config.model.size=tiny

FILE defines get_config(), as the files in configs/ do. Every key can be set on the command line. DIR receives the
results; it is results_<method> unless it is given. The same command resumes an unfinished run.
"""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from prune_jax import config as config_lib
from prune_jax.config import defaults
from prune_jax.errors import Stopped, UserError
from prune_jax.files import expanded
from prune_jax.run import inputs

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "numbers separated by commas",
}
_NO_CONFIG = "--config is missing; for example --config=configs/quickstart.py (--help tells more)"


class _OrNone(flags.ArgumentParser):
    """Reads "None" as None, which unsets a key that follows something else, and leaves the rest to another parser."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument):
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self):
        return self._parser.flag_type()


for _kind, _parser in ((int, flags.IntegerParser()), (float, flags.FloatParser())):
    config_flags.register_flag_parser_for_type(_kind, _OrNone(_parser))


class Arguments(NamedTuple):
    """What the command line asks for.

    Attributes:
      config: the file's config with the keys that were set, not yet resolved.
      workdir: of --workdir; None without it.
    """

    config: Any
    workdir: str | None


def _type_of(key: str, config):
    """The type of a dotted key of `config`; KeyError, AttributeError or TypeError if there is none."""
    *rooms, name = key.split(".")
    for room in rooms:
        config = config[room]
    return config.get_type(name)


def _config_path(argv: Sequence[str]) -> str | None:
    """What --config names, the last of several; None without it."""
    found = [(i, match[1]) for i, arg in enumerate(argv) if (match := re.match(r"--?config(?:=(.*))?$", arg))]
    if not found:
        return None
    i, path = found[-1]
    return path if path is not None else "".join(argv[i + 1 : i + 2])


def _flag_mistake(argv: Sequence[str], error: Exception) -> str:
    """What to tell the user of a failed parse, in terms of the config's keys."""
    config = defaults.get_config()
    path = _config_path(argv)
    if path is None:
        return _NO_CONFIG
    for arg in argv:
        if match := re.match(r"--?config\.([\w.]+)", arg):
            try:
                _type_of(match[1], config)
            except (KeyError, AttributeError, TypeError):
                return config_lib.unknown_key_message(match[1], config)
    if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL):
        kind = _KINDS.get(_type_of(match[1], config), "single keys below it, as in --config.model.size=tiny")
        return f"config.{match[1]} is {match[2]!r}; allowed: {kind}"
    reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = reasons[-1] if reasons else type(error).__name__
    if isinstance(error, flags.Error) and not str(error).startswith("flag --config="):
        return reason
    reason = reason.removeprefix("Configuration is not available because of an earlier failure to load: ")
    return f"cannot load the config file {path!r}: {reason}"


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """The arguments without each --config.KEY=VALUE that a later one replaces.

    absl joins the values of a key that is a tuple, where the last one counts of any other.
    """
    keys = [match[1] if (match := re.match(r"--?(config\.[^=]+)=", arg)) else None for arg in argv]
    return [arg for i, arg in enumerate(argv) if keys[i] is None or keys[i] not in keys[i + 1 :]]


def import_neighbours(path: str) -> None:
    """Lets the config file at `path` import the package that it lies in, as `from configs import common` does.

    A script finds the packages beside itself, and `python -m` those in the current folder; an installed command finds
    neither.
    """
    home = file = Path(path).resolve()
    while (home.parent / "__init__.py").is_file():
        home = home.parent
    if home != file and str(home.parent) not in sys.path:
        sys.path.append(str(home.parent))


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line, without the program's name.

    Raises:
      UserError: a flag is unknown or malformed, a key is unknown, or the config file is missing or cannot be loaded.
    """
    values = flags.FlagValues()
    argv = [f"--config={expanded(arg[9:], '--config')}" if arg.startswith("--config=") else arg for arg in argv]
    argv = ["train", *_last_of_each(argv)]  # config_flags expects the program's name and skips it
    for i, arg in enumerate(argv):
        if match := re.match(r"--?config(?:=(.*))?$", arg):
            import_neighbours(match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2]))
    file = config_flags.DEFINE_config_file("config", None, "The file.", flag_values=values, sys_argv=argv)
    workdir = flags.DEFINE_string("workdir", None, "Where the results go.", flag_values=values)
    try:
        rest = values(argv)
        config = file.value
        if config is not None:
            config.keys()  # a file that could not be loaded raises at its first use
    except Exception as error:  # config_flags lets whatever a config file raises through
        raise UserError(_flag_mistake(argv[1:], error)) from error
    if config is None:
        path = _config_path(argv[1:])
        raise UserError(
            _NO_CONFIG if path is None else f"cannot load the config file {path!r}: get_config() gives None"
        )
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags start with --")
    if workdir.value == "":  # as of an unset variable in a script
        raise UserError("--workdir is ''; allowed: a folder")
    return Arguments(config, workdir.value and expanded(workdir.value, "--workdir"))


def _help() -> str:
    """The command's help: its docstring, and every key with its default."""
    keys = [f"  --config.{key}={value}" for key, value in config_lib.leaves(defaults.get_config()).items()]
    unset = "None: the value follows the model's size, its checkpoint or the task, unless the key is set."
    return "\n".join([__doc__, "The keys and their defaults:", "", *keys, "", unset])


def _keep_what_is_compiled(cache_dir: str) -> None:
    """Lets jax keep compiled steps beside the token cache, so that the next run of this shape starts without a wait.

    What the user has set in the environment holds. Through jax.config: resolving a config whose network comes from a
    checkpoint has imported jax already, which reads the environment only then.
    """
    import jax

    from prune_jax.data import cache

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder(cache_dir) / "compiled"))
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


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the command line asks for.

    Raises:
      UserError: a mistake in the flags, the config or the data; no results were written.
      Stopped: the run ended early, and its checkpoints are in order.
    """
    if any(re.fullmatch(r"-h|--?help", arg) for arg in argv):
        print(_help())
        return
    arguments = parse(argv)
    logging.getLogger("datasets").setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else every retry without a network is logged, twice
    try:
        config, _ = inputs.resolve(arguments.config)
        _keep_what_is_compiled(config.data.cache_dir)
        from prune_jax.run import train  # orbax and flax are loaded only for a config that can run

        # The config as given: train resolves it again, for its notes. A window that has been cut gives none.
        train.train_and_evaluate(arguments.config, arguments.workdir or f"results_{config.pruning.method}")
    except KeyboardInterrupt:  # before or after the training loop, which answers it itself
        raise Stopped("interrupted; what was saved is in order", exit_code=130) from None
