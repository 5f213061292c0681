"""The table of tasks: GLUE (Wang et al., 2018, arXiv:1804.07461), the three built-in ones, and those of images."""

from typing import NamedTuple

from prune_jax.errors import UserError


class Task(NamedTuple):
    """Where a task's rows come from and how it is scored.

    Attributes:
      folder: its folder in the official GLUE download.
      tsv_columns, tsv_label: columns of its tsv files by name (CoLA's have no header: see sources.py).
      hub_columns: text columns of nyu-mll/glue; the label column is "label", the config has the task's name.
      labels: names of the classes in the order of their ids; empty for a regression task with scores from 0 to 5.
      tsv_labels: what stands for each class in the tsv files.
      metrics: GLUE's metrics, the first decides which epoch is best.
      eval_splits: (name, tsv file, hub split) of what is evaluated.
    """

    name: str
    folder: str
    tsv_columns: tuple[str, ...]
    tsv_label: str
    hub_columns: tuple[str, ...]
    labels: tuple[str, ...]
    tsv_labels: tuple[str, ...]
    metrics: tuple[str, ...]
    eval_splits: tuple[tuple[str, str, str], ...] = (("dev", "dev.tsv", "validation"),)

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        """The width of the head: the classes, or 1 for a score."""
        return len(self.labels) or 1

    @property
    def is_pair(self) -> bool:
        return len(self.hub_columns) == 2


class ImageTask(NamedTuple):
    """Images of one channel in ten classes, scored by accuracy; see images.py.

    Attributes:
      source: the only config.data.source that has it.
      shape: (height, width, channels).
    """

    name: str
    source: str
    shape: tuple[int, int, int]
    metrics: tuple[str, ...] = ("accuracy",)
    num_labels: int = 10
    is_regression: bool = False


_PAIR = ("sentence1", "sentence2")
_01 = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS = {
    task.name: task
    for task in (
        Task("cola", "CoLA", ("sentence",), "label", ("sentence",), ("unacceptable", "acceptable"), _01, ("matthews",)),
        Task("sst2", "SST-2", ("sentence",), "label", ("sentence",), ("negative", "positive"), _01, ("accuracy",)),
        Task("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", _PAIR, ("not_equivalent", "equivalent"), _01,
             ("accuracy", "f1")),
        Task("qqp", "QQP", ("question1", "question2"), "is_duplicate", ("question1", "question2"),
             ("not_duplicate", "duplicate"), _01, ("accuracy", "f1")),
        Task("stsb", "STS-B", _PAIR, "score", _PAIR, (), (), ("pearson", "spearman")),
        Task("mnli", "MNLI", _PAIR, "gold_label", ("premise", "hypothesis"),
             ("entailment", "neutral", "contradiction"), ("entailment", "neutral", "contradiction"), ("accuracy",),
             (("dev_matched", "dev_matched.tsv", "validation_matched"),
              ("dev_mismatched", "dev_mismatched.tsv", "validation_mismatched"))),
        Task("qnli", "QNLI", ("question", "sentence"), "label", ("question", "sentence"), _ENTAILMENT, _ENTAILMENT,
             ("accuracy",)),
        Task("rte", "RTE", _PAIR, "label", _PAIR, _ENTAILMENT, _ENTAILMENT, ("accuracy",)),
        Task("wnli", "WNLI", _PAIR, "label", _PAIR, ("not_entailment", "entailment"), _01, ("accuracy",)),
    )
}  # fmt: skip

BUILTIN_TASKS = {
    task.name: task
    for task in (
        Task("single", "", (), "", ("sentence",), ("negative", "positive"), (), ("accuracy",)),
        Task("pair", "", (), "", _PAIR, ("entailment", "not_entailment"), (), ("accuracy",)),
        Task("regression", "", (), "", _PAIR, (), (), ("pearson", "spearman")),
    )
}


IMAGE_TASKS = {
    task.name: task
    for task in (ImageTask("mnist", "idx", (28, 28, 1)), ImageTask("digits", "builtin", (8, 8, 1)))
}  # fmt: skip


def get_task(name: str, source: str) -> Task | ImageTask:
    """The task of that name in that source. UserError, with the allowed names, if there is none.

    The built-in source also answers to the names of the others: each stands for the built-in task of its kind.
    """
    if name in IMAGE_TASKS:
        task = IMAGE_TASKS["digits" if source == "builtin" else name]
        if task.source != source:
            raise UserError(f"config.data.source is {source!r}; allowed with config.data.task={name}: {task.source}")
        return task
    if source == "idx":
        raise UserError(f"config.data.task is {name!r}; allowed with config.data.source=idx: mnist")
    if source == "builtin":
        if name in TASKS:
            glue = TASKS[name]
            return BUILTIN_TASKS["regression" if glue.is_regression else "pair" if glue.is_pair else "single"]
        if name in BUILTIN_TASKS:
            return BUILTIN_TASKS[name]
        allowed = (
            f"{', '.join(BUILTIN_TASKS)}, digits, or a task of another source for the built-in one of its kind "
            f"({', '.join(TASKS)}, mnist)"
        )
    else:
        if name in TASKS:
            return TASKS[name]
        allowed = ", ".join(TASKS)
        if name in BUILTIN_TASKS:
            allowed += " (single, pair and regression need config.data.source=builtin)"
    raise UserError(f"config.data.task is {name!r}; allowed: {allowed}")
