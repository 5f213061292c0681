"""What leaves the house: the card, the hub, the quantised network, a checkpoint as one file; MRPC's own files."""

import json

import huggingface_hub
import jax
import numpy as np
import pytest
from test_export import make_run

from prune_jax import files
from prune_jax.__main__ import main
from prune_jax.data import sources
from prune_jax.data.glue import TASKS
from prune_jax.errors import UserError
from prune_jax.export import hf
from prune_jax.models import Bert
from prune_jax.pruning import trees
from prune_jax.pruning.merge import merge
from prune_jax.run import artifact, checkpoint, predict
from prune_jax.run.commands import export


@pytest.fixture
def run(small_config, tmp_path):
    """(its folder, its params, its gates); the quantised network has four values."""
    _, params, gates = make_run(tmp_path / "run", small_config)
    quantised = jax.tree.map(lambda leaf: np.float32(np.round(leaf)), params)
    saves = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
    saves.save_quantised(3, {"params": quantised, "gates": gates}, {})
    saves.close()
    summary = {"task": "single", "metric_name": "accuracy", "best_metric": 0.875, "dense_metric": 0.9, "method": "spt"}
    summary |= {"final_metric": 0.75, "sparsity": 0.5, "device": "1 x cpu"}
    summary["cost"] = {"batch": 8, "length": 32, "milliseconds": {"dense": 3.0, "pruned": 1.25}}
    files.write_json(tmp_path / "run" / "summary.json", summary)
    files.write_json(tmp_path / "run" / "provenance.json", {"command": ["launch.py", "--config=a b.py"]})
    return tmp_path / "run", params, quantised, gates


def test_an_export_of_the_quantised_network_is_that(run, tmp_path):
    folder, params, quantised, gates = run
    for kind, wanted in (("quantised", quantised), ("final", quantised), ("best", params)):
        export.export(folder, tmp_path / kind, kind)
        found = hf.load(str(tmp_path / kind))
        for name, leaf in trees.by_name(merge(wanted, gates)).items():
            np.testing.assert_array_equal(trees.by_name(found)[name], leaf)


def test_the_card_says_what_was_measured(run, tmp_path):
    folder, _, _, gates = run
    export.export(folder, tmp_path / "out", "best")
    card = (tmp_path / "out" / "README.md").read_text()
    closed = sum(int(np.sum(~gate)) for gate in jax.tree.leaves(gates))
    total = sum(gate.size for gate in jax.tree.leaves(gates))
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    for line in (
        f"{closed:,} of {total:,} weights of its kernels ({100 * closed / total:.2f} %) are exact zeros.",
        "| accuracy, this network (best) | 0.8750 |",
        "| accuracy, before pruning | 0.9000 |",
        f"| model.safetensors | {size:,} bytes |",
        "| latency, dense and with --shrink | 3.00 and 1.25 ms for 8 texts of 32 tokens on 1 x cpu |",
        "| made with | `launch.py '--config=a b.py'` |",
        "AutoModel needs torch.",
    ):
        assert line in card
    export.export(folder, tmp_path / "small", "quantised")
    assert "| accuracy, this network (quantised) | 0.7500 |" in (tmp_path / "small" / "README.md").read_text()


def test_the_lines_of_the_card_keep_the_zeros(run, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, _, _, _ = run
    export.export(folder, tmp_path / "out", "best")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    lines = next(part for part in card.split("```python\n") if "custom_from_mask" in part).split("```")[0]
    exec("import torch.nn.utils.prune\n" + lines, {"model": model, "torch": torch})
    before = {name: int((x == 0).sum()) for name, x in _weights(torch, model).items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ids = torch.tensor([[2, 5, 6, 3]])
    model(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    model(input_ids=ids)  # the masks are applied in the forward pass
    assert {name: int((x == 0).sum()) for name, x in _weights(torch, model).items()} == before
    assert sum(before.values()) > 1000


def _weights(torch, model):
    return {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_a_dry_run_sends_nothing_and_a_push_takes_the_users_token(run, tmp_path, monkeypatch, capsys):
    folder, sent = str(run[0]), []

    class Api:
        def create_repo(self, name, exist_ok):
            sent.append((name, exist_ok))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    out = tmp_path / "out"
    assert main(["export", folder, str(out), "--push-to-hub=me/bert", "--dry-run"]) == 0
    told = capsys.readouterr().out
    names = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert not sent and all(f"  {name}  {(out / name).stat().st_size:,} bytes" in told for name in names)
    assert 'from_pretrained("me/bert")' in (out / "README.md").read_text()
    for arguments, message in (
        (["--push-to-hub=me/bert"], "--push-to-hub needs your own token"),
        (["--push-to-hub=me"], "--push-to-hub is 'me'; allowed: USER/NAME"),
        (["--push-to-hub=me/bert", "--format=stablehlo"], "--push-to-hub needs --format=hf"),
        (["--dry-run"], "--dry-run is of --push-to-hub"),
    ):
        assert main(["export", folder, str(tmp_path / "none"), *arguments]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_own")
    assert main(["export", folder, str(out), "--push-to-hub=me/bert", "--force"]) == 0
    assert sent == [("me/bert", True), ("me/bert", names)]
    assert "uploaded to https://huggingface.co/me/bert" in capsys.readouterr().out

    def refuse(self, name, exist_ok):
        raise ConnectionError("403 Forbidden")

    monkeypatch.setattr(Api, "create_repo", refuse)
    assert main(["export", folder, str(out), "--push-to-hub=me/bert", "--force"]) == 2
    assert "is written; the hub does not take it as me/bert: 403 Forbidden" in capsys.readouterr().err
    assert (out / "model.safetensors").is_file()


def test_a_checkpoint_becomes_one_file(run, tmp_path, capsys):
    folder, _, _, gates = run
    export.export(folder, tmp_path / "out", "best")
    assert main(["compress", str(tmp_path / "out"), str(tmp_path / "small.pjx"), "--bits=0"]) == 0
    network, text = artifact.read(tmp_path / "small.pjx")
    assert text and network.config.data.label_names == ("negative", "positive")
    params = hf.load(str(tmp_path / "out"))
    for name, leaf in trees.by_name(params).items():
        np.testing.assert_array_equal(trees.by_name(network.params)[name], leaf)
    assert sum(int(np.sum(~gate)) for gate in jax.tree.leaves(network.gates)) == sum(
        int(np.sum(~gate)) for gate in jax.tree.leaves(gates)
    )
    texts = ["a b c", "k l"]
    one, other = (predict.load(path, "best") for path in (tmp_path / "small.pjx", tmp_path / "out"))
    assert isinstance(one.model, Bert) and one.labels == other.labels == ("negative", "positive")
    np.testing.assert_array_equal(one.texts(texts), other.texts(texts))
    assert main(["compress", str(tmp_path / "out"), str(tmp_path / "b.pjx"), "--kind=best"]) == 2
    assert "--kind is best, which chooses among the checkpoints of a run" in capsys.readouterr().err
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    files.write_json(tmp_path / "out" / "config.json", raw | {"architectures": ["BertModel"]})
    assert main(["compress", str(tmp_path / "out"), str(tmp_path / "c.pjx")]) == 2
    assert "without the head of a sequence classification" in capsys.readouterr().err


def test_mrpcs_original_files_are_read(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f'{i % 2}\t{i}\t{i + 50}\tfirst "{i}\tsecond {i}' for i in range(6)]
    for name, part in (("train", rows[:4]), ("test", rows[4:])):
        (tmp_path / f"msr_paraphrase_{name}.txt").write_bytes("\r\n".join([header, *part, ""]).encode())
    task = TASKS["mrpc"]
    found = sources.read_tsv_folder(task, tmp_path)
    assert {name: part.labels.tolist() for name, part in found.items()} == {"train": [0, 1, 0, 1], "dev": [0, 1]}
    assert found["dev"].texts_a == ['first "4', 'first "5'] and found["dev"].texts_b == ["second 4", "second 5"]
    (tmp_path / "MRPC").mkdir()
    for path in tmp_path.glob("*.txt"):
        path.rename(tmp_path / "MRPC" / path.name)
    (tmp_path / "MRPC" / "dev_ids.tsv").write_text("1\t51\n3\t53\n")
    found = sources.read_tsv_folder(task, tmp_path)  # GLUE's own cut
    assert {name: part.labels.tolist() for name, part in found.items()} == {"train": [0, 0], "dev": [1, 1]}
    assert set(sources.read_tsv_folder(task, tmp_path, evals_only=True)) == {"dev"}
    with pytest.raises(UserError, match=r"MRPC/msr_paraphrase_train.txt:6: expected 5 tab-separated columns"):
        with open(tmp_path / "MRPC" / "msr_paraphrase_train.txt", "ab") as file:
            file.write(b"1\t2\n")
        sources.read_tsv_folder(task, tmp_path)
