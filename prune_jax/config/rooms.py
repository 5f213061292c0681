"""The rooms of a config that belong to no method, each key declared once: its type, default, range, and a sentence."""

from prune_jax import methods, models
from prune_jax.config.sizes import SIZES
from prune_jax.data.glue import METRICS, PICTURES, TABLES
from prune_jax.pruning.options import option, options

MODELS = {name: entry.reads for name, entry in models.REGISTRY.items()}  # model.name: what it reads, text or images

ACTIVATIONS = (  # of prune_jax.models.bert, which is not loaded for a config
    "gelu",
    "gelu_python",
    "gelu_new",
    "gelu_fast",
    "gelu_accurate",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
)

ARCHITECTURES = ("bert", "roberta", "distilbert", "electra")  # of prune_jax.models.bert.POOLERS
SINKS = ("tensorboard", "wandb", "mlflow")  # those of prune_jax.report.sinks
_CHECKPOINTS = ("best", "last", "quantised")
_SEEDS = 2**32 - 1


@options
class Model:
    """The network."""

    name: str = option(
        "bert",
        "The kind of network: bert reads text, decoder tells the next token of running text, the others read images.",
        choices=tuple(MODELS),
    )
    size: str = option("base", "The preset of the geometry and of what depends on it.", choices=tuple(SIZES))
    init_from: str = option(
        "",
        "The network to start from: the folder of a run (weights and gates), or that of a transformers checkpoint or "
        "its name on the hub (weights); empty, random weights.",
    )
    keep_zeros: str = option(
        "auto",
        "Whether the zeros of a checkpoint without gates are closed gates: never, always, or, with auto, where at "
        "least one in a hundred of its kernels' weights is exactly 0.",
        choices=("auto", "always", "never"),
    )
    init_checkpoint: str = option("best", "The checkpoint of that run.", choices=_CHECKPOINTS)
    num_layers: int | None = option(None, "The number of encoder layers.", 1, 1000)
    d_model: int | None = option(None, "The width of the residual stream.", 1, 100_000)
    num_heads: int | None = option(None, "The attention heads per layer, a divisor of d_model.", 1, 10_000)
    d_ff: int | None = option(None, "The columns of a feed-forward layer.", 1, 1_000_000)
    vocab_size: int | None = option(
        None, "The rows of the token embedding; unset, those of init_from, or else the tokenizer's.", 1, 10_000_000
    )
    max_positions: int | None = option(None, "The rows of the position embedding.", 1, 1_000_000)
    type_vocab_size: int | None = option(None, "The rows of the token type embedding; 0, there are no types.", 0, 1000)
    architecture: str | None = option(
        None,
        "What the network is called in transformers, which decides its pooler's activation; unset, as init_from, or "
        "else bert.",
        choices=ARCHITECTURES,
    )
    embedding_size: int | None = option(
        None, "The width of the embeddings, where they are projected to another d_model.", 1, 100_000
    )
    activation: str | None = option(
        None, "The activation of the feed-forward layers, by its name in transformers.", choices=ACTIVATIONS
    )
    layer_norm_eps: float | None = option(None, "The epsilon of the layer norms.", 0, 1, inclusive=False)
    layer_heads: tuple | None = option(
        None, "The heads of each layer of a shrunk network; unset, num_heads in each where init_from says nothing else."
    )
    layer_ffn: tuple | None = option(
        None, "The feed-forward columns of each layer; unset, d_ff in each where init_from says nothing else."
    )
    pooler_width: int | None = option(
        None, "The units of the pooler; unset, d_model where init_from says nothing else.", 0, 100_000
    )
    widths: tuple | None = option(
        None,
        "The channels of each convolution and the units of each hidden layer of a LeNet whose closed units are cut "
        "out; unset, its published ones where init_from says nothing else.",
    )
    num_kv_heads: int | None = option(
        None, "Of a decoder: the heads of keys and values, a divisor of num_heads; unset, num_heads.", 1, 10_000
    )
    head_dim: int | None = option(
        None, "Of a decoder: the width of a head, an even number; unset, d_model / num_heads.", 2, 10_000
    )
    rope_theta: float | None = option(None, "Of a decoder: the base of the rotary positions.", 0, inclusive=False)
    biases: tuple | None = option(
        None, "Of a decoder: the layers that have biases; unset, none.", choices=("qkv", "output", "ffn")
    )
    window: int | None = option(
        None, "Of a decoder: the tokens that a token sees, itself among them; unset, all before it.", 1, 1_000_000
    )
    tied: bool | None = option(None, "Of a decoder: whether the head is the token embedding; unset, it is.")
    dropout: float = option(0.1, "The dropout rate of training; a decoder has none.", 0, 0.99)
    dtype: str = option(
        "float32",
        "The type that is computed in; with bfloat16 (mixed precision) weights, gates, losses and the optimizer stay "
        "float32.",
        choices=("float32", "bfloat16"),
    )


@options
class Data:
    """The task's data."""

    task: str = option(
        "sst2",
        "The task: one of GLUE, one of the built-in corpus, one of images, or, of your own data, its kind, which "
        "another task's name stands for, too; lm is running text, for a decoder.",
    )
    source: str = option(
        "hub",
        "Where the examples come from: the hub, tsv files of GLUE, idx files of MNIST, built-in ones, your own tables "
        "(csv, jsonl, parquet), folders of text or of images, npz files, or CIFAR-10's files; auto is tsv or idx where "
        "data.dir is set, else builtin.",
        choices=("hub", "tsv", "idx", "builtin", "auto", *TABLES, *PICTURES),
    )
    dir: str = option(
        "", "The official GLUE folder, for tsv, or the folder of MNIST's files, for idx, or of CIFAR-10's."
    )
    train: str = option("", "Your own training data: a file, a folder (text, images), or a split of the hub's (train).")
    eval: str = option(
        "",
        "Your own evaluation data; empty, the hub's split validation or test, else a share of the training examples.",
    )
    eval_share: float = option(
        0.1, "The share of each class that is held out where there is no data.eval.", 0, 1, inclusive=False
    )
    eval_seed: int = option(0, "The seed of that choice.", 0, _SEEDS)
    text: tuple = option(("text",), "The column of your own table that holds the text, or two for pairs.")
    label: str = option("label", "The column of your own table that holds the label.")
    label_names: tuple | None = option(
        None,
        "The classes of your own data in the order of their ids; unset, those found in it, sorted. Of any task, the "
        "order of a checkpoint's outputs where it names none and training examples do not tell.",
    )
    metric: tuple | None = option(
        None, "The metrics, the first of which decides the best epoch; unset, the task's own.", choices=tuple(METRICS)
    )
    class_weights: str = option(
        "none", "The weights of the classes in the training loss.", choices=("none", "balanced")
    )
    image_shape: tuple | None = option(
        None, "The height, width and channels that your own images are brought to; unset, those that they have."
    )
    augment: tuple = option(
        (), "What is done at random to training images: mirrored, moved by up to an eighth.", choices=("flip", "crop")
    )
    stride: int = option(
        0,
        "Of running text: the tokens between the starts of the windows that are evaluated; 0, max_len, side by side.",
        0,
    )
    hub_name: str = option("nyu-mll/glue", "The data set on the hub, or a local folder of the same layout.")
    hub_config: str = option("", "The configuration of your own data set on the hub, where it has several.")
    tokenizer: str = option(
        "",
        "A vocabulary file, a folder, or a name on the hub; empty, that of init_from, or one that suits the source.",
    )
    max_len: int = option(128, "The tokens that a text is cut to.", 8, 1_000_000)
    buckets: tuple | None = option(
        None, "The lengths that batches are padded to, increasing; unset, powers of two up to max_len."
    )
    bad_rows: str = option("error", "What a malformed row of a table is.", choices=("error", "skip"))
    cache_dir: str = option("", "Where tokens are kept; empty, $PRUNE_JAX_CACHE, or else ~/.cache/prune_jax.")
    builtin_train_size: int = option(8000, "The training examples of the built-in corpus.", 1, 10_000_000)
    builtin_eval_size: int = option(1000, "The evaluation examples of the built-in corpus.", 1, 10_000_000)
    builtin_seed: int = option(0, "The seed of the built-in corpus.", 0, _SEEDS)
    holdout: int = option(0, "Training examples to evaluate on in place of the evaluation splits; 0, none.", 0)
    max_train_examples: int = option(0, "The first so many training examples alone; 0, all.", 0)


@options
class Train:
    """The training."""

    epochs: int = option(
        25,
        "The epochs of the run; BENCHMARK_EPOCHS in the environment overrides it. 0 is for pruning in one shot alone.",
        0,
        1_000_000,
    )
    max_steps: int = option(0, "The steps after which the run ends, in the middle of an epoch or not; 0, no limit.", 0)
    patience: int = option(
        0,
        "The epochs without a better metric after which the run ends early, counted from the epoch that reaches the "
        "last sparsity on; 0, never.",
        0,
    )
    batch_size: int = option(96, "The examples per step, a multiple of mesh.data times mesh.fsdp.", 1, 10_000_000)
    accumulate: int = option(
        1,
        "The parts that a step's batch is computed in, one after another, for less memory: their gradients are added "
        "up, and the step is that of the whole batch.",
        1,
        10_000_000,
    )
    eval_batch_size: int = option(
        64, "The examples per step of an evaluation; each bucket's last batch is filled up.", 1, 10_000_000
    )
    learning_rate: float = option(2e-5, "The rate of the weights, after the warm-up.", 0, 1000, inclusive=False)
    lr_schedule: str = option(
        "constant", "The course of the rates after the warm-up.", choices=("constant", "linear", "cosine")
    )
    rewind_epochs: int = option(
        0, "The epochs after which that course and the warm-up start again, over and over; 0, never.", 0
    )
    warmup_fraction: float = option(0.06, "The fraction of all steps in which the rates rise from 0.", 0, 1)
    weight_decay: float = option(0.01, "The decoupled weight decay of kernels and embeddings.", 0, 1000)
    label_smoothing: float = option(
        0.0, "The share of a label that the training loss spreads evenly over the classes.", 0, 0.99
    )
    clip_norm: float = option(1.0, "The global norm that the gradient is clipped to; 0, no clipping.", 0)
    seed: int = option(0, "The seed of initial weights, of the data's order, of dropout, and of ties.", 0, _SEEDS)
    checkpoint_every: int = option(0, "The steps between saves inside an epoch; 0, a save per epoch alone.", 0)


@options
class Mesh:
    """How the devices share the work."""

    data: int = option(-1, "The parts of a batch that whole networks take; -1, the devices that the others leave.", -1)
    fsdp: int = option(
        1,
        "The parts of a batch, and of every weight, gate, score and moment, which devices put together as needed.",
        -1,
    )
    tensor: int = option(1, "The parts of a layer's heads and feed-forward columns; 1 where a model has none.", -1)


@options
class Distributed:
    """The processes of a job that trains on several machines."""

    coordinator: str = option(
        "",
        "Where the first process listens, as in host:1234; auto, what jax finds in the environment; empty, the same "
        "where srun, mpirun or a TPU slice has started several processes, else there is one.",
    )
    num_processes: int = option(1, "The processes of the job, where coordinator is an address.", 1, 1_000_000)
    process_id: int = option(0, "The number of this one, from 0.", 0, 1_000_000)


@options
class Pretrain:
    """A dense run before the run, in WORKDIR/pretrain."""

    epochs: int = option(0, "The epochs of a dense run whose network this one starts from; 0, none.", 0, 1_000_000)
    learning_rate: float = option(1e-3, "The rate of its weights.", 0, 1000, inclusive=False)


@options
class Distill:
    """A teacher."""

    teacher: str = option(
        "", "The teacher: the folder of a run, or that of a transformers checkpoint or its name; empty, none."
    )
    checkpoint: str = option("best", "The checkpoint of that run.", choices=_CHECKPOINTS)
    temperature: float = option(2.0, "The temperature of the soft targets.", 0, 1000, inclusive=False)
    weight: float = option(0.5, "The weight of the soft loss; that of the labels is 1 - weight.", 0, 1)
    hidden_weight: float = option(0.0, "The weight of the squared differences of the layers' outputs.", 0)
    hidden_match: str = option(
        "fixed",
        "The layers whose outputs are compared: each of the student's with its own, or four of the teacher's with the "
        "nearest of the student's each, through a trained linear map.",
        choices=("fixed", "nearest"),
    )
    attention_weight: float = option(0.0, "The weight of the squared differences of the attention scores.", 0)


@options
class Pruning:
    """What is pruned, when and how far."""

    method: str = option("spt", "The pruning method.", choices=(*methods.REGISTRY, *methods.ONESHOT))
    schedule: str = option(
        "step",
        "The course of the sparsity: sparsity_steps, or between two epochs a straight line, a curve that slows down, a "
        "cosine, or all at once at start_epoch.",
        choices=("step", "linear", "cubic", "cosine", "one_shot"),
    )
    start_sparsity: float = option(0.0, "The closed fraction at start_epoch; with step, the least.", 0, 1)
    end_sparsity: float = option(1.0, "The closed fraction at end_epoch; with step, the most.", 0, 1)
    start_epoch: int = option(4, "The epochs before the pruning starts.", 0)
    end_epoch: int = option(23, "The epochs after which a linear, cubic or cosine schedule has reached its end.", 0)
    sparsity_steps: tuple | None = option(
        None,
        "The closed share per epoch after start_epoch, the last value holding on: all percentages (25, 50, 100) or all "
        "fractions of 1 (0.25, 0.5, 1.0), never both; a percentage below 1 is written as a fraction.",
    )
    structure: str = option("unstructured", "Which gates close together.")
    scope: str = option(
        "local",
        "Whether each kernel meets the target, or all together: by their scores, or by the Erdos-Renyi kernel "
        "distribution.",
        choices=("local", "erk", "global"),
    )


@options
class OneShot:
    """Pruning from a few examples, before the training or without one."""

    method: str = option(
        "",
        "The method that prunes before the training; empty, none, or pruning.method where that is one of these. "
        "Afterwards pruning.method goes on, sparsegpt, wanda and obs with the gates as they are.",
        choices=("", "magnitude", *methods.ONESHOT),
    )
    sparsity: float = option(0.5, "The closed fraction of each kernel, or of its units; n:m has its own.", 0, 1)
    target: str = option(
        "units",
        "What that fraction is of, where units close: of each group's units, or of the network's operations.",
        choices=("units", "flops"),
    )
    scope: str = option(
        "local",
        "Where single weights close: local, each kernel closes that fraction; global, all kernels together, so that "
        "the network's outputs lose little.",
        choices=("local", "global"),
    )
    examples: int = option(128, "The training examples, or windows of text, that it is pruned on.", 1)
    correct: bool = option(
        False,
        "Whether kernels are solved for against the dense network's outputs, and the survivors once more, by least "
        "squares. Takes more examples than a kernel has inputs, 1024 or so.",
    )


@options
class Report:
    """Where the numbers go."""

    sinks: tuple = option(("tensorboard",), "Where the numbers go besides the files of the workdir.", choices=SINKS)
    project: str = option("prune_jax", "The project of Weights & Biases, the experiment of MLflow.")
    mlflow_uri: str = option(
        "", "MLflow's tracking server; empty, $MLFLOW_TRACKING_URI, or else mlruns/ beside the workdir."
    )


FIXED: dict[str, type] = {
    "model": Model,
    "data": Data,
    "train": Train,
    "mesh": Mesh,
    "distributed": Distributed,
    "pretrain": Pretrain,
    "distill": Distill,
    "pruning": Pruning,
    "oneshot": OneShot,
    "report": Report,
}
