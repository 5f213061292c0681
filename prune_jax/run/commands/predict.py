"""Predicts the labels of texts or images.

    prune-jax predict PATH --text "..." [--text "..."]
    prune-jax predict PATH --in FILE [--columns COLUMN [COLUMN]] [--out FILE]
    prune-jax predict RUN_DIR [RUN_DIR ...] --glue=GLUE_DIR --out SUBMISSION.zip

PATH is the folder of a run, that of an export to transformers, or a .pjx file. --text takes two texts for a network
that reads pairs. FILE is a .csv, .tsv or .jsonl with the columns that the run was trained on, or a .txt with a text per
line; images are a file or a folder. Every row gets a label with its probability, or a score; predicted_label and so on
where FILE has a column of such a name. The rows go to --out, in the format of its name, or to the screen as
tab-separated columns.

With --glue, the test splits of the runs' tasks are predicted and zipped as gluebenchmark.com takes them.
"""

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prune_jax import files
from prune_jax.errors import UserError
from prune_jax.run.commands import arguments

_TABLES = {".csv": ",", ".tsv": "\t"}
_IMAGES = (".png", ".jpg", ".jpeg")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = arguments.parser("predict", __doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, an export to transformers, or a .pjx file")
    arguments.add_kind(parser)
    parser.add_argument("--text", action="append", nargs="+", default=[], metavar="TEXT", help="a text, or a pair")
    parser.add_argument("--in", dest="source", metavar="FILE", help="a file with a row per text, or a folder of images")
    parser.add_argument("--columns", nargs="+", metavar="COLUMN", help="its text columns (default: the run's)")
    parser.add_argument("--glue", metavar="GLUE_DIR", help="the official GLUE folder, whose test splits are predicted")
    parser.add_argument("--out", metavar="FILE", help="where the rows go: .csv, .tsv or .jsonl; with --glue .zip")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="rows per step")
    args = parser.parse_args(argv)
    if sum((bool(args.text), args.source is not None, args.glue is not None)) != 1:
        raise UserError("one of --text, --in and --glue says what to predict (--help tells more)")
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}; allowed: 1 or more")
    suffixes = (".zip",) if args.glue else (*_TABLES, ".jsonl")
    out = Path(args.out) if args.out else None
    if (out and out.suffix not in suffixes) or (args.glue and not out):
        raise UserError(f"--out is {args.out!r}; allowed: a file whose name ends in {', '.join(suffixes)}")
    if out and not out.absolute().parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}")
    if out:
        if out.is_dir() or (args.source and os.path.realpath(out) == os.path.realpath(args.source)):
            what = "a folder" if out.is_dir() else "the file of --in"
            raise UserError(f"--out is {args.out!r}, which is {what}; allowed: another file")
        files.check_writable(out.absolute().parent)  # rather than after all rows
    if args.columns and (not args.source or len(args.columns) > 2):
        raise UserError(f"--columns is {' '.join(args.columns)}; allowed: one or two columns of the file of --in")
    if len(args.paths) > 1 and not args.glue:
        raise UserError("several networks are for --glue alone, one for each task")

    from prune_jax.data import own
    from prune_jax.run import folder as runs
    from prune_jax.run import predict, submission

    if args.kind != "final" and (other := [path for path in args.paths if not runs.is_run(path)]):
        raise UserError(f"--kind is {args.kind}, which chooses among the checkpoints of a run; {other[0]} is none")
    networks = [predict.load(path, arguments.kind_of(path, args.kind)) for path in args.paths]
    if args.glue:
        written = submission.write(networks, Path(args.glue), out, args.batch_size)
        print(f"{out}: {', '.join(written)}")
        return
    (network,) = networks
    if args.text:
        if len({len(texts) for texts in args.text}) > 1 or len(args.text[0]) > 2:
            raise UserError("every --text takes one text, or every --text takes two")
        rows = [dict(zip(("text", "text_b"), texts, strict=False)) for texts in args.text]
        columns = list(rows[0])
    else:
        rows, columns = _read(Path(args.source), network, args.columns)
    if columns == ["image"]:
        found = network.images([row["image"] for row in rows], args.batch_size)
    else:
        texts = [[str(row[column]) for row in rows] for column in columns]
        found = network.texts(texts[0], texts[1] if len(texts) > 1 else None, args.batch_size)
        if note := own.of_empty(texts):
            print(f"{args.source or '--text'}: {note}", file=sys.stderr)
    _write(rows, network.answers(found), out)


def _read(path: Path, network, columns: list[str] | None) -> tuple[list[dict], list[str]]:
    """(the rows of a file, the columns that are read)."""
    if not path.exists():
        raise UserError(f"--in is {str(path)!r}; there is no such file")
    from prune_jax.data import delimited, json_lines

    columns = columns or _columns(network)
    if path.is_dir() or path.suffix.lower() in _IMAGES:
        found = [p for p in files.visible(path, "**/*") if p.suffix.lower() in _IMAGES] if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path} holds no images ({', '.join(_IMAGES)})")
        return [{"image": image} for image in found], ["image"]
    try:
        kind = path.suffix.lower()
        if kind in _TABLES:
            separator, names = delimited.layout(path, columns)
            with open(path, encoding="utf-8-sig", newline="") as file, delimited.cells_of_any_length():
                rows = list(csv.DictReader(file, delimited.distinct(names), delimiter=separator))[1:]
        elif kind == ".jsonl":
            rows = json_lines.read(path)
        elif kind == ".txt":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            lines = lines[:-1] if lines[-1] == "" else lines
            rows, columns = [{"text": line.rstrip("\r")} for line in lines], ["text"]
        else:
            raise UserError(f"--in is {str(path)!r}; allowed: a .csv, .tsv, .jsonl or .txt file, or images")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows")
    for number, row in enumerate(rows, 1):
        if missing := [column for column in columns if column not in row]:
            raise UserError(
                f"{path}, row {number}: there is no column {missing[0]!r} but {', '.join(map(str, row))}; --columns "
                "names others"
            )
        if odd := [column for column in columns if isinstance(row[column], list | dict)]:
            raise UserError(f"{path}, row {number}: {odd[0]!r} holds no text: {json.dumps(row[odd[0]])[:60]}")
    return [{key: "" if value is None else value for key, value in row.items()} for row in rows], columns


def _columns(network) -> list[str]:
    task = network.task
    return list(getattr(task, "columns", None) or getattr(task, "hub_columns", None) or ("text",))


def _write(rows: list[dict], answers: list[dict], out: Path | None) -> None:
    """Writes every row with its answer, which is renamed where the file has a column of its name."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    prefix = ""
    while any(prefix + name in columns for name in answers[0]):
        prefix += "predicted_"
    answers = [{prefix + name: value for name, value in answer.items()} for answer in answers]
    if out is not None and out.suffix == ".jsonl":
        lines = (
            json.dumps(files.plain(row | answer), ensure_ascii=False) for row, answer in zip(rows, answers, strict=True)
        )
        files.write_text(out, "".join(f"{line}\n" for line in lines))
        return
    import io

    buffer = io.StringIO()
    delimiter = _TABLES[out.suffix] if out else "\t"
    writer = csv.DictWriter(buffer, [*columns, *answers[0]], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    for row, answer in zip(rows, answers, strict=True):
        writer.writerow(row | {k: f"{v:.6f}" if isinstance(v, float) else v for k, v in answer.items()})
    if out is None:
        sys.stdout.write(buffer.getvalue())
    else:
        files.write_text(out, buffer.getvalue())
