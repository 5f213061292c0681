"""A real Slurm on this machine (tests/slurm.sh): a sweep as an array of jobs, and one run over the tasks of a step."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

SMALL = {
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 2,
    "model.d_ff": 32,
    "data.source": "builtin",
    "data.max_len": 16,
    "data.builtin_train_size": 96,
    "data.builtin_eval_size": 32,
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which srun and sbatch find the cluster."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"Slurm cannot be started: {', '.join(missing) or 'only root may'} (apt-get install slurm-wlm munge)"
        )
    folder = tmp_path_factory.mktemp("slurm")
    script = ROOT / "tests" / "slurm.sh"
    try:
        subprocess.run([script, "start", folder], check=True, timeout=120)
        yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    finally:
        subprocess.run([script, "stop", folder], check=True, timeout=60)


def test_a_sweep_of_jobs_one_of_which_is_killed(slurm, tmp_path):
    """No accounting is kept, which submitit would ask for; the queue tells that the job is gone."""
    pytest.importorskip("submitit")
    command = [sys.executable, "-m", "prune_jax", "sweep", "-p", "magnitude", "-m", "tiny", "-t", "single", "-e", "30"]
    command += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    command += ["--seeds", "0,1", "--launcher=slurm", "--slurm", "timeout_min=10", "--out", "sweep"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first, second = (tmp_path / "sweep" / f"results_magnitude_single_seed{seed}" for seed in (0, 1))
    sweep = subprocess.Popen(command, cwd=tmp_path, env=slurm, **pipes)
    deadline = time.monotonic() + 300
    while not (first / "checkpoints" / "last" / "2").exists():
        assert sweep.poll() is None and time.monotonic() < deadline, sweep.communicate()[0]
        time.sleep(0.05)
    jobs = subprocess.run(["squeue", "--noheader", "--array", "--format=%i"], env=slurm, capture_output=True, text=True)
    (job,) = (job for job in jobs.stdout.split() if job.endswith("_0"))
    subprocess.run(["scancel", "--signal=KILL", job], env=slurm, check=True)
    said, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, said
    assert f"[{first.name}] FAILED" in said
    # Slurm kills the processes of a step one by one: what waits for the run may still write that it was killed.
    left_a_result = list((tmp_path / "sweep" / "slurm").glob(f"{job}_*_result.pkl"))
    assert left_a_result or f"the job {job} ended without a result" in said
    assert f"[{second.name}] done in" in said and (second / "summary.json").is_file()
    assert "sacct" not in said and "warning" not in said.lower()
    done = subprocess.run(command, cwd=tmp_path, env=slurm, timeout=300, check=True, **pipes)
    assert f"[{second.name}] is done already" in done.stdout and "sacct" not in done.stdout
    assert "resuming after" in (first / "run.log").read_text()
    assert (tmp_path / "sweep" / "report.html").is_file()


def test_one_run_over_the_tasks_of_a_step(slurm, tmp_path):
    run = [sys.executable, str(ROOT / "launch.py"), f"--config={ROOT / 'configs' / 'quickstart.py'}"]
    run += [f"--config.{key}={value}" for key, value in SMALL.items()]
    run += ["--config.train.epochs=2", "--config.pruning.method=magnitude", "--config.pruning.start_epoch=1"]
    run += ["--config.pruning.sparsity_steps=50", "--workdir=run"]
    pipes = {"capture_output": True, "text": True, "timeout": 300, "cwd": tmp_path, "env": slurm}
    done = subprocess.run(["srun", "-n2", *run], **pipes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 2/2") == 1 and "in 2 processes" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["device"].startswith("2 x ") and summary["sparsity"] == pytest.approx(0.5, abs=0.01)
    refused = subprocess.run(["srun", "-n2", *run, "--config.data.max_len=1000"], **pipes)
    assert refused.returncode == 2 and "config.data.max_len is 1000" in refused.stderr
