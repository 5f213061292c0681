"""Methods from outside the package: one call, or an entry point."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prune_jax as pj
from prune_jax import config as config_lib
from prune_jax import methods
from prune_jax.config import keys
from prune_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

SOURCE = '''
import jax
import jax.numpy as jnp

import prune_jax as pj
from prune_jax.pruning.gates import kernels


@pj.options
class Options:
    """The options of cubes."""

    power: float = pj.option(3.0, "The power of |w|.", 0, inclusive=False)


@pj.made_from(Options)
def create(options):
    def prune(info):
        scores = jax.tree.map(lambda w: jnp.abs(w) ** options.power, kernels(info.params, info.gates))
        return pj.Pruned(info.plan.close(info.gates, scores, info.target, info.key))

    return pj.Method("cubes", prune=prune)
'''


@pytest.fixture
def cubes():
    """The create of SOURCE, registered for the test alone."""
    scope = {"__name__": "cubes"}
    exec(SOURCE, scope)
    pj.register("cubes", scope["create"])
    yield scope["create"]
    del methods.REGISTRY["cubes"]
    for changed in methods.ON_CHANGE:
        changed()


def test_a_registered_method_has_a_room_of_checked_keys(cubes):
    pj.register("cubes", cubes)  # a config file may be read twice
    config = config_lib.default()
    assert config.cubes.power == 3.0
    config.pruning.method, config.cubes.power, config.data.source = "cubes", 2.0, "builtin"
    config.data.task = "single"
    resolved, _ = config_lib.resolve(config, {})
    assert methods.from_config(resolved).name == "cubes"
    config.cubes.power = -1.0
    with pytest.raises(UserError, match=r"config\.cubes\.power is -1\.0; allowed: above 0"):
        config_lib.resolve(config, {})


def test_what_cannot_be_registered(cubes):
    with pytest.raises(ValueError, match="name is 'magnitude'; allowed: one that is not taken"):
        pj.register("magnitude", cubes)
    with pytest.raises(ValueError, match="name is 'my-own'; allowed: letters"):
        pj.register("my-own", cubes)
    with pytest.raises(TypeError, match="allowed: a Method whose name is 'squares'"):
        pj.register("squares", cubes)
    with pytest.raises(TypeError, match="allowed: a function decorated with made_from"):
        pj.register("squares", lambda: pj.Method("squares"))
    make = pj.made_from(cubes.options)(lambda options: pj.Method("train"))
    with pytest.raises(ValueError, match="name is 'train'; allowed: one that is not a room"):
        pj.register("train", make)
    assert "train" not in methods.REGISTRY and "train.epochs" in keys.KEYS and "cubes.power" in keys.KEYS


def test_an_installed_package_brings_methods_by_an_entry_point(tmp_path):
    """As pip leaves it: a module, and a dist-info that names it; in a fresh interpreter."""
    (tmp_path / "cubes.py").write_text(SOURCE)
    info = tmp_path / "cubes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cubes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{methods.GROUP}]\ncubes = cubes:create\n")
    assert [e.name for d in importlib.metadata.distributions(path=[str(tmp_path)]) for e in d.entry_points] == ["cubes"]
    code = (
        "from prune_jax import config, methods; c = config.default(); c.pruning.method = 'cubes'; c.cubes.power = 2.0;"
        "import json; print(json.dumps([c.cubes.power, methods.maker('cubes')(power=2).name]))"
    )
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [2.0, "cubes"]
