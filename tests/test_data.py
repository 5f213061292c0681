"""The data room: every task's files with their real quirks, the hub layout, the tokenizer, the batches."""

import json
import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_jax.data import batching, builtin, sources, tokenizer
from prune_jax.data.glue import BUILTIN_TASKS, TASKS, get_task
from prune_jax.errors import UserError
from prune_jax.run import inputs

# Small files as the official download has them: two rows each, with the quirks that readers stumble over.
_FILES = {
    "cola": ("gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tThey \"drank the pub.\n", None),
    "sst2": ("sentence\tlabel\nhide new secretions from the parental units \t0\na \" smile on your face \t1\n", None),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        '1\t702876\t702977\tAmrozi accused his brother , whom he called " the witness " .\tReferring to him .\n'
        '0\t2108705\t2108831\t" Yucaipa owned it .\tYucaipa bought it .\n',
        None,
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
        '133273\t213221\t213222\tHow is the "life" of a math student?\tWhich level of prep?\t0\n'
        "402555\t536040\t536041\tHow do I control my horny emotions?\tHow do you control it?\t1\n",
        None,
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane is taking off.\tAn air plane takes off.\t5.000\n"
        '1\tmain-captions\tMSRvid\t2012test\t0004\tnone\tnone\tA man plays "a flute.\tA man is eating.\t0.4\n',
        None,
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t31193\t31193n\tgovernment\t( x )\t( y )\t(R x)\t(R y)\tCream skimming.\tProduct.\tneutral\tneutral\n"
        "1\t1\t1e\ttelephone\t( x )\t( y )\t(R x)\t(R y)\tyou know.\tYou lose.\tentailment\tentailment\n",
        # dev files have more annotators' labels, and so other columns
        "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n"
        "0\t6\t6c\tfiction\tThe new rights.\tEveryone likes it.\tneutral\tneutral\tcontradiction\n",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n"
        "0\tWhen did it begin?\tThe \"Kieper began in 1870.\tnot_entailment\n"
        "1\tWhat came?\tThat came.\tentailment\n",
        None,
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tNo weapons found.\tWeapons found.\tnot_entailment\n"
        "1\tA place of sorrow.\tPope Benedict.\tentailment\n",
        None,
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\tI stuck a pin through it.\tThe carrot had a hole.\t1\n"
        "1\tJohn couldn't see.\tHe is short.\t0\n",
        None,
    ),
}  # fmt: skip
_EXPECTED = {  # task: (text a of the second row, text b of the second row, labels)
    "cola": ('They "drank the pub.', None, [1, 0]),
    "sst2": ('a " smile on your face', None, [0, 1]),
    "mrpc": ('" Yucaipa owned it .', "Yucaipa bought it .", [1, 0]),
    "qqp": ("How do I control my horny emotions?", "How do you control it?", [0, 1]),
    "stsb": ('A man plays "a flute.', "A man is eating.", [5.0, 0.4]),
    "mnli": ("you know.", "You lose.", [1, 0]),
    "qnli": ("What came?", "That came.", [1, 0]),
    "rte": ("A place of sorrow.", "Pope Benedict.", [1, 0]),
    "wnli": ("John couldn't see.", "He is short.", [1, 0]),
}


def write_task(folder, name, newline="\n"):
    train, dev = _FILES[name]
    for split, path in sources.tsv_files(TASKS[name], folder).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = train if split == "train" else dev or train
        path.write_bytes(text.replace("\n", newline).encode())
    return folder


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", TASKS)
def test_every_tasks_tsv_files(name, newline, tmp_path):
    found = sources.read_tsv_folder(TASKS[name], write_task(tmp_path, name, newline))
    evals = ["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"]
    assert list(found) == ["train", *evals]
    text_a, text_b, labels = _EXPECTED[name]
    train = found["train"]
    assert train.texts_a[1] == text_a and len(train.texts_a) == 2
    assert (train.texts_b[1] if text_b else train.texts_b) == text_b
    np.testing.assert_allclose(train.labels, labels)
    assert train.labels.dtype == (np.float32 if name == "stsb" else np.int32)
    if name == "mnli":
        assert found["dev_mismatched"].texts_b == ["Everyone likes it."] and found["dev_matched"].labels == [2]


def test_a_last_line_without_its_newline_counts(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\nyes\t1\nno\t0")
    assert sources.read_tsv(TASKS["sst2"], path).texts_a == ["yes", "no"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("sst2", "sentence\tlabel\nfine\t1\nno label here\n", ":3: expected 2 tab-separated columns, found 1"),
        ("sst2", "sentence\tlabel\nfine\t2\n", ":2: the label is '2'; allowed: 0, 1"),
        ("sst2", "text\tlabel\nfine\t1\n", ":1: expected a header with the column 'sentence', found text, label"),
        ("sst2", "", ":1: expected a header with the column 'sentence', found an empty file"),
        ("sst2", "sentence\tlabel\n", "has no rows"),
        ("cola", "gj04\t1\tThe sailors rode.\n", ":1: expected 4 tab-separated columns, found 3"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n", "'neutral'; allowed: entailment, not_entail"),
        ("stsb", _FILES["stsb"][0].replace("5.000", "5.1"), ":2: the score is '5.1'; allowed: a number from 0 to 5"),
        ("stsb", _FILES["stsb"][0].replace("5.000", "nan"), ":2: the score is 'nan'"),
        ("stsb", _FILES["stsb"][0].replace("5.000", ""), ":2: the score is ''"),
    ],
)
def test_malformed_rows_name_file_line_and_what_was_expected(name, text, says, tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        sources.read_tsv(TASKS[name], path)
    assert str(error.value).startswith(str(path)) and says in str(error.value)


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(UserError, match="is not UTF-8 text: byte 18 is 0xe9"):
        sources.read_tsv(TASKS["sst2"], path)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path, caplog):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\nfine\t1\nbroken\nworse\t7\ngood\t0\n")
    with caplog.at_level(logging.WARNING, logger="absl"):
        rows = sources.read_tsv(TASKS["sst2"], path, "skip")
    assert rows.texts_a == ["fine", "good"] and list(rows.labels) == [1, 0]
    assert "left out 2 malformed rows of 4" in caplog.text


def test_a_missing_split_names_its_path(tmp_path):
    write_task(tmp_path, "mnli")
    missing = tmp_path / "MNLI" / "dev_mismatched.tsv"
    missing.unlink()
    with pytest.raises(UserError) as error:
        sources.read_tsv_folder(TASKS["mnli"], tmp_path)
    assert str(error.value).startswith(f"{missing} is missing") and "MNLI/train.tsv" in str(error.value)


REAL_COUNTS = {
    "cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3667, 408), "stsb": (5749, 1500), "rte": (2490, 277),
    "wnli": (635, 71),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL_COUNTS)
def test_the_real_files_have_their_published_rows(name, real_data):
    found = sources.read_tsv_folder(TASKS[name], real_data / "glue")
    assert tuple(len(rows.labels) for rows in found.values()) == REAL_COUNTS[name]
    for rows in found.values():
        assert all(rows.texts_a) and all(rows.texts_b or ["one sentence"])
        assert set(np.unique(rows.labels)) == {0, 1} or name == "stsb"
        assert rows.labels.max() <= 5


def test_the_real_qnli_lacks_its_train_split(real_data):
    with pytest.raises(UserError, match=r"QNLI/train\.tsv is missing"):
        sources.read_tsv_folder(TASKS["qnli"], real_data / "glue")


# The hub -------------------------------------------------------------------------------------------------------------


def write_hub(folder, name, splits):
    """A local folder of nyu-mll/glue's layout: one parquet file a split, and the card that names the configs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    for split, columns in splits.items():
        file = f"{name}/{split}-00000-of-00001.parquet"
        pq.write_table(pa.table(columns), folder / file)
        lines += [f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def hub_table(name, count):
    columns = {column: [f"{column} {i}" for i in range(count)] for column in TASKS[name].hub_columns}
    labels = [i % 2 for i in range(count)] if name != "stsb" else [0.5 * i for i in range(count)]
    return {**columns, "label": labels, "idx": list(range(count))}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_from_the_hubs_layout(name, tmp_path):
    hub_splits = [hub for _, _, hub in TASKS[name].eval_splits]
    hub_name = write_hub(
        tmp_path / "glue", name, {"train": hub_table(name, 4)} | dict.fromkeys(hub_splits, hub_table(name, 3))
    )
    found = sources.read_hub(TASKS[name], hub_name)
    assert [len(rows.labels) for rows in found.values()] == [4] + [3] * len(hub_splits)
    column_a, *column_b = TASKS[name].hub_columns
    assert found["train"].texts_a[3] == f"{column_a} 3"
    assert found["train"].texts_b is None if not column_b else found["train"].texts_b[2] == f"{column_b[0]} 2"
    assert found["train"].labels.dtype == (np.float32 if name == "stsb" else np.int32)


def test_hub_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"cannot load rte from config\.data\.hub_name=.*config\.data\.source=tsv"):
        sources.read_hub(TASKS["rte"], str(tmp_path / "nothing"))
    hub_name = write_hub(tmp_path / "a", "rte", {"train": hub_table("rte", 4)})
    with pytest.raises(UserError, match="has no split 'validation' of rte: it has"):
        sources.read_hub(TASKS["rte"], hub_name)
    bad = hub_table("rte", 4) | {"label": [0, 1, -1, 0]}
    hub_name = write_hub(tmp_path / "b", "rte", {"train": bad, "validation": bad})
    with pytest.raises(UserError, match="rte train, row 2: the label is -1; allowed: 0 to 1"):
        sources.read_hub(TASKS["rte"], hub_name)
    odd = hub_table("rte", 4) | {"sentence2": ["a", None, "c", "d"]}
    hub_name = write_hub(tmp_path / "d", "rte", {"train": odd, "validation": odd})
    with pytest.raises(UserError, match="rte train, row 1: sentence2 is None; allowed: a text"):
        sources.read_hub(TASKS["rte"], hub_name)
    lacking = {k: v for k, v in hub_table("rte", 4).items() if k != "sentence2"}
    hub_name = write_hub(tmp_path / "c", "rte", {"train": lacking, "validation": lacking})
    with pytest.raises(UserError, match="has no column 'sentence2'"):
        sources.read_hub(TASKS["rte"], hub_name)


# The built-in corpus -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", BUILTIN_TASKS)
def test_the_built_in_corpus_is_a_function_of_its_seed(task):
    first, again, other = (builtin.generate(task, 200, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert first == again and first[0] != other[0]
    texts, labels = first
    assert len({len(text) for text in texts}) == 1 and len(set(texts)) > 190
    if task == "regression":
        assert min(labels) >= 0 and max(labels) <= 5 and len(set(labels)) > 150
    else:
        assert 0.35 < np.mean(labels) < 0.65


def test_sentiment_by_the_rules_of_the_docstring():
    good, bad, plain = builtin.POSITIVE[0], builtin.NEGATIVE[0], builtin.NEUTRAL[0]
    negator, very, but = builtin.NEGATORS[0], builtin.INTENSIFIERS[0], builtin.CONTRAST[0]
    assert builtin.sentiment([plain, good, plain]) == 1
    assert builtin.sentiment([negator, plain, good, good]) == builtin.sentiment([good, good, negator]) == -2
    assert builtin.sentiment([very, bad, good]) == -1
    assert builtin.sentiment([negator, very, bad]) == 2
    assert builtin.sentiment([bad, bad, but, good]) == 1
    assert builtin.sentiment([negator, bad, bad, but, good]) == -1


def test_counting_words_does_not_solve_the_built_in_task():
    texts, labels = builtin.generate("single", 2000, 0)
    score = [sum(builtin._POLARITY.get(word, 0) for word in text.split()) for (text,) in texts]
    by_counting = np.mean((np.array(score) > 0) == np.array(labels))
    by_rule = np.mean(
        [(builtin.sentiment(text.split()) > 0) == label for (text,), label in zip(texts, labels, strict=True)]
    )
    assert by_counting < 0.7 and 0.96 < by_rule < 1  # 2% of the labels are wrong


def test_glue_names_stand_for_the_built_in_task_of_their_kind():
    kinds = {name: get_task(name, "builtin").name for name in ("cola", "rte", "stsb")}
    assert kinds == {"cola": "single", "rte": "pair", "stsb": "regression"}


# The tokenizer -------------------------------------------------------------------------------------------------------


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "##s", "good", ".", "bad"]


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path


def test_wordpieces_types_and_truncation(vocab_file):
    tok = tokenizer.load(str(vocab_file))
    assert tok.vocab_size == len(VOCABULARY)
    ids, types, offsets = tok.encode(["A good films .", "zebra"], ["bad", "film"], 16)
    first = [VOCABULARY[i] for i in ids[: offsets[1]]]
    assert first == ["[CLS]", "a", "good", "film", "##s", ".", "[SEP]", "bad", "[SEP]"]
    assert list(types[: offsets[1]]) == [0] * 7 + [1] * 2
    assert [VOCABULARY[i] for i in ids[offsets[1] :]] == ["[CLS]", "[UNK]", "[SEP]", "film", "[SEP]"]
    ids, types, offsets = tok.encode(["a a a a a a a a"], ["bad bad"], 8)  # the longer text is cut first
    assert [VOCABULARY[i] for i in ids] == ["[CLS]", "a", "a", "a", "[SEP]", "bad", "bad", "[SEP]"]
    single, _, _ = tok.encode(["a " * 50], None, 8)
    assert len(single) == 8 and VOCABULARY[single[-1]] == "[SEP]"


def test_the_real_vocabulary_gives_the_ids_of_bert_base_uncased(real_data):
    tok = tokenizer.load(str(tokenizer.vocabulary_beside(real_data / "glue")))
    assert tok.vocab_size == 30522
    ids, _, _ = tok.encode(["Hello, my dog is cute"], None, 128)
    assert list(ids) == [101, 7592, 1010, 2026, 3899, 2003, 10140, 102]  # as transformers' documentation prints them


def test_a_folder_saved_by_us_is_loaded_by_transformers_and_by_us(vocab_file, tmp_path):
    import transformers

    tok = tokenizer.load(str(vocab_file))
    tok.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    ours = tokenizer.load(str(tmp_path / "saved"))
    ids, _, _ = tok.encode(["a good film"], ["bad ."], 32)
    assert (
        theirs("a good film", "bad .")["input_ids"] == list(ids) == list(ours.encode(["a good film"], ["bad ."], 32)[0])
    )
    assert theirs.pad_token == "[PAD]" and ours.vocab_size == tok.vocab_size


def test_the_trained_vocabulary_is_the_same_in_every_process(tmp_path):
    texts = ["red green", "green blue", "blue red rare"]
    first, again = (tokenizer.train(texts) for _ in range(2))
    assert first.identity == again.identity
    ids, _, _ = first.encode(["rare red"], None, 32)
    tokens = [first.backend.id_to_token(int(i)) for i in ids]
    assert tokens == ["[CLS]", "r", "##a", "##r", "##e", "red", "[SEP]"]  # a word seen once is spelled


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vocab.txt", "is not a BERT vocabulary: it lacks [PAD]"),
        ("nowhere", "cannot load the tokenizer config.data.tokenizer="),
    ],
)
def test_tokenizer_mistakes(name, says, tmp_path):
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(UserError) as error:
        tokenizer.load(str(tmp_path / name))
    assert says in str(error.value)


# Batches -------------------------------------------------------------------------------------------------------------


def make_split(lengths, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    ids = rng.integers(1, 1000, offsets[-1]).astype(np.int32)
    return batching.Split(ids, (ids % 2).astype(np.int8), offsets, np.arange(len(lengths), dtype=np.int32))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=80), st.integers(1, 17), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_has_every_example_once_in_shapes_that_stay(lengths, batch_size, seed, epoch):
    split, buckets = make_split(lengths), (8, 16, 32)
    seen, shapes = [], []
    for batch in batching.train_batches(split, batch_size, buckets, seed, epoch):
        real = batch["weights"] == 1
        assert set(np.unique(batch["weights"])) <= {0, 1} and real.any()
        assert (batch["labels"][~real] == 0).all()
        shapes.append(batch["input_ids"].shape)
        for row in np.flatnonzero(real):
            example = batch["labels"][row]
            length = int(batch["attention_mask"][row].sum())
            at = slice(split.offsets[example], split.offsets[example + 1])
            np.testing.assert_array_equal(batch["input_ids"][row, :length], split.ids[at])
            np.testing.assert_array_equal(batch["token_type_ids"][row, :length], split.types[at])
            assert not batch["input_ids"][row, length:].any() and length == lengths[example]
            seen.append(example)
    assert sorted(seen) == list(range(len(lengths)))
    assert len(shapes) == batching.num_train_batches(split, batch_size)
    other = [
        batch["input_ids"].shape for batch in batching.train_batches(split, batch_size, buckets, seed + 1, epoch + 1)
    ]
    assert set(other) == set(shapes)  # nothing new to compile in another epoch


def test_short_batches_are_not_computed_at_max_len():
    split = make_split([5] * 64 + [100] * 64)
    lengths = [b["input_ids"].shape[1] for b in batching.train_batches(split, 16, (16, 32, 64, 128), 0, 0)]
    assert sorted(lengths) == [16] * 4 + [128] * 4


def test_a_resumed_epoch_goes_on_with_the_same_batches():
    split = make_split(np.random.default_rng(0).integers(1, 32, 100))
    whole = list(batching.train_batches(split, 8, (16, 32), 3, 2))
    rest = list(batching.train_batches(split, 8, (16, 32), 3, 2, skip=5))
    assert len(rest) == len(whole) - 5
    for a, b in zip(whole[5:], rest, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    orders = [
        [tuple(b["labels"]) for b in batching.train_batches(split, 8, (16, 32), s, e)]
        for s, e in ((3, 2), (3, 3), (4, 2))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_evaluation_sees_every_example_once():
    split = make_split([3, 30, 5, 17, 16, 1, 9])
    found = list(batching.eval_batches(split, 2, (16, 32)))
    assert sorted(np.concatenate([rows for rows, _ in found])) == list(range(7))
    for rows, batch in found:
        assert batch["weights"].sum() == len(rows) and list(batch["labels"][: len(rows)]) == list(rows)


def test_buckets():
    assert batching.resolve_buckets(100) == (16, 32, 64, 100)
    assert batching.resolve_buckets(100, (50, 100)) == (50, 100)
    assert batching.resolve_buckets(16, (8, 16, 24, 128)) == (8, 16)
    assert batching.resolve_buckets(20, (8, 16, 24, 128)) == (8, 16, 24)


# Loading and the cache -----------------------------------------------------------------------------------------------


def load(config):
    return inputs.load_data(inputs.resolve(config, {})[0])


def test_load_caches_the_tokens_and_survives_a_broken_cache(small_config, tmp_path, monkeypatch, caplog):
    small_config.data.cache_dir = str(tmp_path / "cache")
    first = load(small_config)
    files = sorted((tmp_path / "cache").glob("*.npz"))
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer.Tokenizer, "encode", lambda *_: pytest.fail("tokenised twice"))
        again = load(small_config)
    for a, b in zip(first.train, again.train, strict=True):
        np.testing.assert_array_equal(a, b)
    files[0].write_bytes(files[0].read_bytes()[:100])
    with caplog.at_level(logging.WARNING, logger="absl"):
        np.testing.assert_array_equal(load(small_config).train.ids, first.train.ids)
    assert "making it again" in caplog.text
    changed = small_config.copy_and_resolve_references()
    changed.data.max_len = 16
    assert load(changed).train.lengths.max() <= 16


def test_a_cache_that_cannot_be_written_costs_only_time(small_config, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    small_config.data.cache_dir = str(tmp_path / "cache" / "below")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(load(small_config).train) == 150
    assert "cannot write the cache" in caplog.text


def test_the_head_of_the_training_data(small_config):
    whole = load(small_config)
    small_config.data.max_train_examples = 40
    head = load(small_config)
    assert len(head.train) == 40 and len(head.evals["dev"]) == 50
    np.testing.assert_array_equal(head.train.ids, whole.train.ids[: head.train.offsets[-1]])
    assert "40 train, 50 dev" in head.description


def test_a_batch_larger_than_the_data_is_a_mistake(small_config):
    small_config.train.batch_size = 151
    with pytest.raises(UserError, match=r"config\.train\.batch_size is 151, more than the 150 .*allowed: 1 to 150"):
        load(small_config)


def test_the_token_cache_is_readable_without_pickle(small_config, tmp_path):
    small_config.data.cache_dir = str(tmp_path)
    load(small_config)
    for path in tmp_path.glob("*.npz"):
        with np.load(path, allow_pickle=False) as saved:
            assert json.dumps(sorted(saved.files)) == '["ids", "offsets", "sha256", "types"]'


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, ["Der", "Hund"]),
        ({"do_lower_case": True}, ["der", "[UNK]"]),
        ({"do_lower_case": False}, ["Der", "Hund"]),
        ({"do_lower_case": False, "unk_token": {"content": "<unk>"}}, ["Der", "Hund"]),
    ],
)
def test_a_vocabulary_is_read_as_its_tokenizer_config_says(settings, tokens, tmp_path):
    words = ["[PAD]", "[UNK]", "<unk>", "[CLS]", "[SEP]", "[MASK]", "Der", "Hund", "der", "caf\u00e9", "cafe"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in (tmp_path, tmp_path / "vocab.txt"):
        ids, _, _ = tokenizer.load(str(name)).encode(["Der Hund", "caf\u00e9 x"], None, 8)
        assert [words[i] for i in ids[1:3]] == tokens
    accents = "cafe" if settings.get("do_lower_case") else "caf\u00e9"
    assert words[ids[5]] == accents and words[ids[6]] == ("<unk>" if "unk_token" in settings else "[UNK]")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nfilm\ngood\nfilm\n", "line 7 repeats the token 'film' of line 5"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nfilm\r\ngood\nfilm \n", "line 7 repeats the token 'film' of line 5"),
        (b"[PAD]\n[UNK]\n\n[CLS]\n[SEP]\nfilm\n", "line 3 is blank"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nfi\xfflm\n", "vocab.txt is not text in UTF-8"),
    ],
)
def test_a_vocabulary_whose_lines_are_no_tokens_is_told(content, says, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(says)):
        tokenizer.load(str(tmp_path / "vocab.txt"))


def test_blank_lines_at_the_end_of_a_vocabulary_do_no_harm(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, "", ""]))
    tok = tokenizer.load(str(tmp_path / "vocab.txt"))
    ids, _, _ = tok.encode([" ".join(VOCABULARY[5:])], None, 64)
    assert ids.max() < tok.vocab_size


def test_a_saved_tokenizer_does_not_depend_on_what_was_encoded(vocab_file, tmp_path):
    used = tokenizer.load(str(vocab_file))
    used.encode(["a film"], None, 8)
    padded = tokenizer.load(str(vocab_file))
    padded.backend.enable_padding(length=128)  # as a checkpoint's tokenizer.json may say
    for name, tok in (("fresh", tokenizer.load(str(vocab_file))), ("used", used), ("padded", padded)):
        tok.save(tmp_path / name)
    texts = {(tmp_path / name / "tokenizer.json").read_bytes() for name in ("fresh", "used", "padded")}
    assert len(texts) == 1
