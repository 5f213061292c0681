"""Fixtures: the real data where it is to be found, a token cache of the session's own, and a config that runs fast."""

import os
import signal
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import settings as hypothesis_settings

from configs import common
from prune_jax import report

# The same cases in every run: a failure is one of the change at hand. --hypothesis-profile=default draws others.
hypothesis_settings.register_profile("fixed", derandomize=True)
hypothesis_settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parents[1]

# Nearly all of the tests' time is compiling, of what runs for a moment: XLA is asked for plain code, which takes it a
# quarter of the time. It reads its flags at its first compilation, here and in the programs that tests start. One
# that it does not know ends the program: they are given to the versions that the tests have been run with.
PLAIN = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
PLAIN = PLAIN if jax.__version_info__ < (0, 11) else ""
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {PLAIN}".strip()


def devices(number: int) -> dict[str, str]:
    """What the environment of a program with this many devices of the CPU holds."""
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={number} {PLAIN}", "JAX_PLATFORMS": "cpu"}


def pytest_runtest_logreport(report):
    """Tells a failure at once: a run that is ended from outside prints no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid}\n{report.longreprtext[-3000:]}", flush=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with glue/ and bert-base-uncased/; skips only where there is none."""
    candidates = [os.environ.get("PRUNE_JAX_DATA"), ROOT.parent / "shared" / "data"]
    for folder in candidates:
        if folder and (Path(folder) / "glue").is_dir():
            return Path(folder)
    pytest.skip("no real data: neither PRUNE_JAX_DATA nor ../shared/data has a glue folder")


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Many tests run the same small network: what one has compiled the others load, and so do the programs they start.

    All workers share a folder. JAX takes no lock on one without a limit of its size; who reads half an entry compiles.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    settings = {
        "jax_disable_most_optimizations": True,  # plain code, as PLAIN
        "jax_compilation_cache_dir": str(shared / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_max_size": -1,  # a limit would look at all files at each new one
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield


@pytest.fixture(scope="module", autouse=True)
def _compiled_is_dropped():
    """Gives back what a module has compiled: the whole suite would hold 8 GB per process."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()


@pytest.fixture
def compiled_counts():
    """For a test that reads `_cache_size()`: JAX counts 8192 compiled calls per process, and every later one as 0."""
    jax.clear_caches()


@pytest.fixture
def stop_at():
    """(patch, step): the process gets a SIGTERM once it asks for the batch of that step, from 1."""
    from prune_jax.data import batching

    def stop(patch, step):
        original, taken = batching.train_batches, [0]

        def batches(*args):
            for batch in original(*args):
                taken[0] += 1
                if taken[0] == step:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        patch.setattr(batching, "train_batches", batches)

    return stop


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    previous = os.environ.get("PRUNE_JAX_CACHE")
    os.environ["PRUNE_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if previous is None:
        del os.environ["PRUNE_JAX_CACHE"]
    else:
        os.environ["PRUNE_JAX_CACHE"] = previous


@pytest.fixture
def pictures():
    """For a test whose runs draw their pictures although they have the small config."""


@pytest.fixture
def small_config(request, monkeypatch):
    """The config `small`; no run of this process draws, which would take longer than its epochs, without `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(report, "draw", lambda workdir, summary: [])
    return small()


def small():
    """Built-in data and a network of a few thousand weights: an epoch takes a fraction of a second.

    All sentences share one bucket, so that each step compiles once, and no sink is written to.
    """
    config = common.get_config()
    config.model.size = "tiny"
    config.model.num_layers = 1
    config.model.d_model = 16
    config.model.num_heads = 2
    config.model.d_ff = 32
    config.data.source = "builtin"
    config.data.task = "single"
    config.data.max_len = 16
    config.data.builtin_train_size = 150
    config.data.builtin_eval_size = 50
    config.train.epochs = 4
    config.train.batch_size = 16
    config.train.eval_batch_size = 32
    config.train.learning_rate = 1e-3
    config.pruning.start_epoch = 1
    config.pruning.sparsity_steps = (25, 50, 75)
    config.movement.frequency = 3
    config.spt.epsilon = 0.05
    config.report.sinks = ()
    return config
