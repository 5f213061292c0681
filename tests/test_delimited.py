"""Odd csv files: a row that does not fit is told, never shifted; what is plain is read, whatever its separator."""

import gzip

import pytest
from test_own_data import load, texts, vocab, write_csv  # noqa: F401  (vocab is a fixture)

from prune_jax.data import delimited
from prune_jax.errors import UserError

BAD = {
    # pandas took the first cell of each row for an index: the text was then its label
    "a separator at each end": ("text,label,score\ngood day,yes,1,\nbad day,no,2,\n", "line 2: the row has 4 cells"),
    "a comma without quotes": ("text,label\nbad,no\nwell, good day,yes\n", "line 3: the row has 3 cells, the header 2"),
    "a cell too few": ("text,label\n\nbad,no\ngood\n", "line 4: the row has 1 cells, the header 2; .* keeps its ','"),
    "a line break before it": ('text,label\n"bad\nday",no\na,b,c\n', "line 4: the row has 3 cells"),
    "a quotation mark alone": ('text,label\n"a "good" day,yes\nbad,no\n', "line 2: .* has those inside it doubled"),
    "one that never ends": ('text,label\nbad,no\n"good,yes\nbad,no\n', "line 3: unexpected end of data"),
    "a header alone": ("text,label\n", "has no rows"),
    "nothing": ("", "has no rows"),
    "another encoding": ("text,label\nschön,yes\n".encode("latin-1"), r"is not UTF-8 \(byte 0xf6\)"),
    "a spreadsheet's UTF-16": ("text,label\ngood,yes\n".encode("utf-16"), "is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_told(name, tmp_path):
    content, says = BAD[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"t\.csv.*{says}"):
        delimited.layout(path, ("text", "label"))


@pytest.mark.parametrize(("separator", "name"), [(";", "t.csv"), ("\t", "t.csv"), ("\t", "t.tsv"), (",", "t.csv.gz")])
def test_the_separator_is_found(separator, name, tmp_path, vocab):  # noqa: F811
    rows = [f'"good{separator}day"{separator}yes', f"bad{separator}no", ""] * 4
    text = "\ufeff" + "\r\n".join([f"text{separator}label", *rows])
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found = load("csv", vocab, train=str(path), eval=str(path))
    assert found.task.labels == ("no", "yes") and len(found.train) == 8
    assert (
        texts(found.train)[1] == "bad" and texts(found.train)[0].startswith("good") and "day" in texts(found.train)[0]
    )


def test_a_cell_may_be_of_any_length(tmp_path, vocab):  # noqa: F811
    path = write_csv(tmp_path / "t.csv", [f"good{' day' * 50_000},yes", "bad,no"] * 2)
    assert len(load("csv", vocab, train=path, eval=path).train) == 4


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_a_table_without_rows_is_told(source, tmp_path, vocab):  # noqa: F811
    path = tmp_path / f"t.{source}"
    if source == "jsonl":
        path.touch()
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match=r"no rows|cannot read"):
        load(source, vocab, train=str(path), eval=str(path))
