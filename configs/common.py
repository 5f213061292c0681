"""Every key of an experiment, with its default. A placeholder follows the model size or the task unless it is set."""

from ml_collections import config_dict

placeholder = config_dict.placeholder


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()

    config.model = config_dict.ConfigDict()
    config.model.name = "bert"  # bert, for text | lenet_300_100 | lenet5_caffe | tutorial, for images
    config.model.size = "base"  # tiny | small | base | large
    # A run's folder (weights, gates), a transformers checkpoint's or its hub name (weights); empty: random weights.
    config.model.init_from = ""
    config.model.init_checkpoint = "best"  # best | last | quantised, of a run
    config.model.num_layers = placeholder(int)
    config.model.d_model = placeholder(int)
    config.model.num_heads = placeholder(int)
    config.model.d_ff = placeholder(int)
    config.model.vocab_size = placeholder(int)  # the tokenizer's, or that of init_from, which may be larger
    config.model.max_positions = placeholder(int)  # 512; as the next three, that of init_from where it is set
    config.model.type_vocab_size = placeholder(int)  # 2
    config.model.activation = placeholder(str)  # gelu; by transformers' names
    config.model.layer_norm_eps = placeholder(float)  # 1e-12
    config.model.layer_heads = placeholder(tuple)  # heads of each layer of a shrunk network; unset: num_heads
    config.model.layer_ffn = placeholder(tuple)  # feed-forward columns of each layer; unset: d_ff
    config.model.pooler_width = placeholder(int)  # and units of the pooler; unset: d_model
    config.model.dropout = 0.1
    config.model.dtype = "float32"  # float32 | bfloat16, of the computation; weights are float32

    config.data = config_dict.ConfigDict()
    config.data.task = "sst2"
    config.data.source = "hub"  # hub | tsv | idx | builtin | auto: by the folder where data.dir is given, else builtin
    config.data.dir = ""  # the official GLUE folder, for tsv; MNIST's files, for idx
    config.data.hub_name = "nyu-mll/glue"  # or a local folder of the same layout
    config.data.tokenizer = ""  # a vocab file, a folder, or a hub name; empty: found or trained
    config.data.max_len = 128  # tokens
    config.data.buckets = placeholder(tuple)  # lengths that batches are padded to; unset: powers of two
    config.data.bad_rows = "error"  # error | skip
    config.data.cache_dir = ""  # empty: $PRUNE_JAX_CACHE or ~/.cache/prune_jax
    config.data.builtin_train_size = 8000
    config.data.builtin_eval_size = 1000
    config.data.builtin_seed = 0
    config.data.holdout = 0  # training examples to evaluate on in place of the evaluation splits; 0: none
    config.data.max_train_examples = 0  # 0: all

    config.train = config_dict.ConfigDict()
    config.train.epochs = 25
    config.train.batch_size = 96
    config.train.eval_batch_size = 64  # each bucket's last batch is filled up to it
    config.train.learning_rate = 2e-5
    config.train.lr_schedule = "constant"  # constant | linear | cosine, after the warm-up
    config.train.warmup_fraction = 0.06  # of all steps
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1.0  # of the gradient; 0: no clipping
    config.train.seed = 0
    config.train.checkpoint_every = 0  # steps between saves inside an epoch; 0: at epoch ends only

    config.pretrain = config_dict.ConfigDict()
    config.pretrain.epochs = 0  # of a dense run in WORKDIR/pretrain, to start from its network; 0: none
    config.pretrain.learning_rate = 1e-3

    config.distill = config_dict.ConfigDict()
    config.distill.teacher = ""  # a run's folder, a transformers checkpoint's or its hub name; empty: none
    config.distill.checkpoint = "best"  # best | last | quantised, of a run
    config.distill.temperature = 2.0
    config.distill.weight = 0.5  # of the soft loss, 1 - weight that of the labels
    config.distill.hidden_weight = 0.0  # of the squared differences of the layers' outputs
    config.distill.attention_weight = 0.0  # and of their attention scores

    config.pruning = config_dict.ConfigDict()
    config.pruning.method = "spt"
    config.pruning.schedule = "step"  # step | linear
    config.pruning.start_sparsity = 0.0
    config.pruning.end_sparsity = 1.0
    config.pruning.start_epoch = 4
    config.pruning.end_epoch = 23
    config.pruning.sparsity_steps = placeholder(tuple)  # one an epoch after start_epoch; percentages or fractions
    config.pruning.structure = "unstructured"  # also encoder | head, ffn, pooler, joined by + | block:RxC | n:m
    config.pruning.scope = "local"  # local: each kernel | global: all kernels together

    config.spt = config_dict.ConfigDict()
    config.spt.epsilon = placeholder(float)  # share of the open gates a pass closes; 0.3 with credit=layer
    config.spt.reward_alpha = 0.125
    config.spt.explorations = 1  # passes a step
    config.spt.explore_per_layer = False
    config.spt.center = True
    config.spt.credit = "weight"  # weight | layer | group: who shares the reward of a pass
    config.spt.inside = "magnitude"  # magnitude | movement: with credit=layer, who is closed first inside a layer
    config.spt.control_variate = False  # score by the first-order effect, explore what it leaves unexplained
    config.spt.antithetic = False  # passes in pairs whose samples have no gate in common
    config.spt.candidates = "uniform"  # uniform | threshold: all open gates, or the lower half of each layer's scores
    config.spt.absolute = False  # the size of an effect on the loss in place of its sign
    config.spt.chunk = placeholder(int)  # passes at once under vmap; unset: 1 on CPU, all elsewhere

    config.movement = config_dict.ConfigDict()
    config.movement.frequency = placeholder(int)  # steps between updates of the gates
    config.movement.threshold = "hard"  # hard | soft
    config.movement.scores = "sum"  # sum | adam: how the hard form's are trained; the soft form's are by Adam
    config.movement.regrow = False  # whether closed gates whose scores rise again reopen, as in the paper
    config.movement.tau = 0.1  # soft: a gate closes where sigmoid(score) is below
    config.movement.score_learning_rate = 1e-2  # of Adam
    config.movement.penalty = 1.0  # soft: weight of mean(sigmoid(score)) in the loss

    config.sws = config_dict.ConfigDict()
    config.sws.components = 16  # of the mixture, the one at zero among them
    config.sws.pi0 = 0.99  # mixing proportion of the component at zero
    config.sws.learn_pi0 = False  # start it there, and train it under a beta prior
    config.sws.pi0_alpha = 1.0  # of that prior
    config.sws.pi0_beta = 1.0
    config.sws.tau = 0.003  # weight of the prior, over the training examples
    config.sws.tau_anneal = 0.0  # fraction of the steps in which tau rises from 0 on a straight line
    config.sws.embeddings = False  # whether embedding tables are under the prior, too
    config.sws.mean_range = 0.6  # the other means start evenly spaced between minus this and this
    config.sws.deviation = 0.25  # standard deviation that every component starts with
    config.sws.zero_alpha = 5e3  # gamma prior on the precision of the component at zero
    config.sws.zero_beta = 2.0
    config.sws.alpha = 2.5e2  # and of the others
    config.sws.beta = 0.1
    config.sws.means_learning_rate = 1e-4
    config.sws.gammas_learning_rate = 3e-3  # of the log-precisions
    config.sws.rhos_learning_rate = 3e-3  # of the log-proportions
    config.sws.merge_kl = 1e-10  # nats; components nearer than this become one at the end

    config.report = config_dict.ConfigDict()
    config.report.sinks = ("tensorboard",)  # any of tensorboard, wandb, mlflow: where the numbers go besides the files
    config.report.project = "prune_jax"  # project of W&B, experiment of MLflow
    config.report.mlflow_uri = ""  # of the tracking server; empty: $MLFLOW_TRACKING_URI or mlruns/ beside the workdir
    return config
