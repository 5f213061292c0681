"""The tables of tasks: GLUE (Wang et al., 2018, arXiv:1804.07461), built-in ones, images, and a user's own."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, NamedTuple

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
      labels: the classes are digits, and have no names besides.
      source: the only config.data.source that has it.
      shape: (height, width, channels).
    """

    name: str
    source: str
    shape: tuple[int, int, int]
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    num_labels: int = 10
    is_regression: bool = False


class OwnTask(NamedTuple):
    """A task of the user's own data: own.py reads its text, pictures.py its images.

    Attributes:
      name: of the file, the folder or the data set, for tables.
      is_regression: whether labels are numbers.
      columns: the text columns, one or two; empty for images.
      labels: names of the classes in the order of their ids; empty until the data is read, and for a regression.
      metrics: the first decides which epoch is best.
      shape: (height, width, channels) of images; empty until they are read, and for text.
    """

    name: str
    is_regression: bool
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    shape: tuple[int, ...] = ()

    @property
    def num_labels(self) -> int:
        """The width of the head: the classes, or 1 for a number."""
        return len(self.labels) or 1

    @property
    def is_pair(self) -> bool:
        return len(self.columns) == 2


class LanguageTask(NamedTuple):
    """Running text whose next tokens are told, scored by perplexity; see language.py.

    Attributes:
      name: of the file or folder, for tables.
      labels: none; num_labels: what is kept of a window's evaluation, the summed losses and how many there are.
    """

    name: str
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("perplexity",)
    num_labels: int = 2
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

KINDS = ("classification", "regression")  # data.task of the user's own data
LANGUAGE = "lm"  # data.task of running text
TABLES = ("csv", "jsonl", "parquet", "text")  # data.source of one's own text, besides the hub
PICTURES = ("images", "npz", "cifar10")  # data.source of one's own images

# metric: whether it scores a regression. mse is never the first; perplexity is that of running text alone.
METRICS = {"accuracy": False, "f1": False, "macro_f1": False, "matthews": False,
           "pearson": True, "spearman": True, "mse": True, "perplexity": False}  # fmt: skip
LOWER_IS_BETTER = ("mse", "perplexity")


def better(metric: str, one: float, other: float) -> bool:
    """Whether a value of the metric is better than another.

    Example:
      >>> better("accuracy", 0.9, 0.8), better("perplexity", 30.0, 20.0)
      (True, False)
    """
    return one < other if metric in LOWER_IS_BETTER else one > other


def best(metric: str, values: Iterable[float]) -> float:
    """The best of values of the metric, one or more."""
    return min(values) if metric in LOWER_IS_BETTER else max(values)


def is_own(task: str, source: str) -> bool:
    """Whether config.data.task and config.data.source mean data of the user's own that has labels."""
    return task != LANGUAGE and (source in TABLES + PICTURES or (source == "hub" and task in KINDS))


def reads_images(task: str, source: str) -> bool:
    """Whether config.data.task and config.data.source mean images."""
    if task == LANGUAGE:
        return False
    return source in PICTURES or (not is_own(task, source) and get_task(task, source).name in IMAGE_TASKS)


def task_of(data: Any) -> Task | ImageTask | OwnTask | LanguageTask:
    """The task of a resolved config.data, without a look at the data.

    The classes of an own task are those of data.label_names, which a run sets to what it has found.
    """
    metrics = tuple(data.metric or ())
    if data.task == LANGUAGE:
        return LanguageTask(_name(data), metrics=metrics or LanguageTask._field_defaults["metrics"])
    if not is_own(data.task, data.source):
        task: Task | ImageTask = get_task(data.task, data.source)
        return task._replace(metrics=metrics) if metrics else task
    regression = data.task == "regression"
    return OwnTask(
        _name(data),
        regression,
        () if data.source in PICTURES else tuple(data.text),
        tuple(data.label_names or ()),
        metrics or (("pearson", "spearman") if regression else ("accuracy",)),
        tuple(data.image_shape or ()) if data.source in PICTURES else (),
    )


def check_metrics(task: Task | ImageTask | OwnTask | LanguageTask) -> None:
    """Raises UserError where config.data.metric does not fit the task; classes that are not known yet fit."""
    if isinstance(task, LanguageTask):
        if task.metrics != ("perplexity",):
            raise UserError(f"config.data.metric is {','.join(task.metrics)}; allowed with {LANGUAGE}: perplexity")
        return
    classes = 0 if task.is_regression else task.num_labels if task.labels or isinstance(task, ImageTask) else 2
    fitting = [
        name
        for name, scores in METRICS.items()
        if scores == task.is_regression and (name != "f1" or classes == 2) and name != "perplexity"
    ]
    if not set(task.metrics) <= set(fitting) or task.metrics[0] == "mse":
        raise UserError(
            f"config.data.metric is {','.join(task.metrics)}; allowed with {task.name}: {', '.join(fitting)}"
            + (", and the first, which decides the best epoch, is not mse" if task.is_regression else "")
        )


def _name(data: Any) -> str:
    """What a data set is called in tables: ag_news, reviews for reviews.csv and for reviews/train.csv."""
    if data.source == "cifar10":
        return "cifar10"
    if data.source == "hub":
        return "_".join(filter(None, (PurePath(data.hub_name).name, data.hub_config)))
    path = PurePath(data.train)
    return path.parent.name or path.stem if path.stem == "train" else path.stem


def get_task(name: str, source: str) -> Task | ImageTask:
    """Looks up the task of that name in that source. UserError, with the allowed names, if there is none.

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
