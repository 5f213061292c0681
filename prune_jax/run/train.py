"""One run: data in, a pruned network and its measurements out.

Everything the run does is a function of its config: the data order, dropout, sampling and ties all follow from
`train.seed` and the step, so a run that is stopped and resumed ends with the numbers of an undisturbed one.
"""

from collections.abc import Callable
from pathlib import Path

import jax

from prune_jax import config as config_lib
from prune_jax import files, methods, report
from prune_jax.pruning.method import Method
from prune_jax.run import continuing, distill, inputs, mesh, processes, telling
from prune_jax.run import network as network_lib
from prune_jax.run import workdir as workdir_lib
from prune_jax.run.loop import Loop


def train_and_evaluate(config, workdir, method_of: Callable[..., Method] = methods.from_config) -> dict:
    """Runs, or resumes, the experiment of `config` in `workdir`.

    Args:
      config: a ConfigDict in the form of configs/common.py; resolved here.
      workdir: a folder. An unfinished run of the same config in it is resumed, any other run is zipped first.
      method_of: (resolved config) -> the method; by default the registered one that the config names.
    Returns:
      The summary that workdir/summary.json holds.
    Raises:
      UserError: a mistake in the config or the data, before anything is written.
      Stopped: the loss became NaN, a signal asked for a stop, or the disk is full; the checkpoints are in order.
    """
    config, notes = inputs.resolve(config)
    inputs.check_apart(config, workdir)
    processes.join(config.distributed)
    console = report.Console() if processes.first() else report.Silence()
    with processes.together():
        layout = mesh.create(config)
        dataset = inputs.load_data(config)
        label_names = config.data.label_names  # of the user; those that are found are no answer
        config = inputs.with_found(config, dataset.task)
        network_lib.check_vocabulary(config, dataset)
        teacher = distill.load(config, dataset, label_names)
        network = network_lib.made(config, dataset, method_of)
        mesh.check_model(layout, network[0], config.model.name)
    workdir = Path(workdir)
    config_json, read = config_lib.to_json(config), continuing.fingerprint(dataset)
    networks = continuing.networks(config)
    alike = {room: values for room, values in config_json.items() if room != "distributed"}
    processes.check_same("their data, their config or their workdir", f"{read} {networks} {workdir.absolute()} {alike}")
    start = None  # read before anything on disk moves; a pretraining's network is there only later
    if config.model.init_from:
        resumes = processes.first_says(lambda: workdir_lib.resumes(workdir, config_json, read, networks))
        with processes.together():
            start = None if resumes else network_lib.start(config, dataset, network[0], label_names)
    resuming = processes.first_says(lambda: workdir_lib.prepare(workdir, config_json, console.log, read, networks))
    with workdir_lib.room(workdir):
        console.attach(workdir)
        of_plan = (*telling.coverage(network, config), *telling.closed_whole(network, config))
        for note in (*notes, *dataset.notes, *of_plan):
            console.log(f"note      {note}")
        if config.pretrain.epochs and not config.model.init_from:
            config = _pretrained(config, workdir / workdir_lib.PRETRAIN, console)
        if not resuming and processes.first():
            if dataset.tokenizer:
                dataset.tokenizer.save(workdir / "tokenizer")
            files.write_json(workdir / "provenance.json", workdir_lib.provenance(str(jax.devices()[0])))
        if not distill.changes_loss(config.distill):
            teacher = None
        if teacher:
            dataset, line = distill.teach(teacher, config, dataset, layout)
            console.log(line)
        if config.model.init_from and start is None and not resuming:
            with processes.together():
                start = network_lib.start(config, dataset, network[0], label_names)
        summary = Loop(config, dataset, network, start, workdir, console, resuming, layout, teacher).run()
        for line in telling.closing_lines(summary, workdir, network[0]):
            console.log(line)
        return summary


def _pretrained(config, workdir: Path, console):
    """Runs, resumes or finds the dense run that config.pretrain asks for; the config that starts from its network."""
    if not processes.first_says((workdir / "summary.json").exists):
        console.log(f"pretraining in {workdir}")
        try:
            train_and_evaluate(config_lib.pretraining(config), workdir)
        finally:
            workdir_lib.release(workdir)
    config = config.copy_and_resolve_references()
    config.model.init_from = str(workdir)
    return config
