import csv
import gzip
import io
import os
from pathlib import Path

import pandas as pd
import pytest

from batchsim.errors import TraceError
from batchsim.files.tables import CsvTable, csv_text, read_csv, read_csv_text


def read(tmp_path: Path, text: str | bytes) -> CsvTable:
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path)


def test_table_is_text_by_the_lines_of_its_file(tmp_path: Path) -> None:
    table = read(tmp_path, '\ufeff\n a , b\r\n1, x \r\n\r\n"2\n3",\r\n4,y\n')

    assert table.frame.columns.tolist() == ["a", "b"]
    assert table.frame["a"].to_dict() == {3: "1", 5: "2\n3", 7: "4"}
    assert table.frame["b"].tolist() == ["x", "", "y"]


def test_gzipped_table_is_the_same(tmp_path: Path) -> None:
    plain, zipped = read(tmp_path, "a\n1\n"), read(tmp_path, gzip.compress(b"a\n1\n", mtime=0))

    assert plain.frame.equals(zipped.frame)
    assert plain.sha256 != zipped.sha256


def test_numbers_are_those_that_python_reads(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b\n0.30000000000000004,1\n1e-3,+2.\n.5,3e0\n")

    assert table.times("a").tolist() == [0.1 + 0.2, 0.001, 0.5]
    assert table.counts("b").to_dict() == {2: 1.0, 3: 2.0, 4: 3.0}
    assert table.where(table.counts("b") > 1).times("a").to_dict() == {3: 0.001, 4: 0.5}


def test_truths_are_no_numbers_and_numbers_may_be_truths(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b,c\nTrue,1,2\nfalse,0,yes\n")

    assert table.truths("a").tolist() == table.truths("b").tolist() == [True, False]
    with pytest.raises(TraceError, match=r"a.csv, line 2: c is '2'; True or False is needed"):
        table.truths("c")


@pytest.mark.parametrize(
    "text",
    ["True", "1_000", "nan", "inf", "-1", "0", "1e999", "1e-320", "1e15", "0x10", "1,5", "", "a", "\u0661"],
)
def test_what_is_no_time_is_refused_by_line(text: str, tmp_path: Path) -> None:
    table = read(tmp_path, f'a,b\n1.0,x\n"{text}",x\n')

    with pytest.raises(TraceError) as refusal:
        table.times("a")

    shown = repr(text) if text else "blank"
    assert str(refusal.value) == (
        f"{table.path}, line 3: a is {shown}; a finite number > 0 is needed, from 1e-12 to 1e+09"
    )


@pytest.mark.parametrize("text", ["1.5", "0", "1e13", "True", ""])
def test_what_is_no_count_is_refused(text: str, tmp_path: Path) -> None:
    table = read(tmp_path, f"a,b\n{text},x\n")

    with pytest.raises(TraceError, match=r"line 2: a is .*; a whole number >= 1 is needed, up to 1e\+12"):
        table.counts("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": not a CSV table (it is empty)"),
        ("\n\n", ": not a CSV table (it is empty)"),
        ("a,b\n1,2\n3\n", ", line 3: 1 fields where the header has 2"),
        ("a,b\n1,2,3\n4,5,6\n", ", line 2: 3 fields where the header has 2"),
        ("a,b, a\n1,2,3\n", ": column 'a' stands twice in the header; once is needed"),
        ('a,"b\nc"\n1,2\n', ": column 'b\\nc' is no name of a column"),
        ('a\n"1\n', ", line 2: not a CSV table (unexpected end of data)"),
        ("a\n" + "1" * 200_000 + "\n", ", line 2: not a CSV table (field larger than field limit"),
        ("a\n1\ufeff\n", ", line 2: a byte-order mark stands inside the text"),
        (b"a\n1\0\n", ", line 2: a NUL character stands inside the text"),
        (b"a\n\xff\n", ", line 2: byte 0xff is no UTF-8"),
        (gzip.compress(b"a\n1\n", mtime=0)[:-4], ": broken gzip file"),
        (b"\x1f\x8b\x08nonsense", ": broken gzip file"),
        (gzip.compress(b"a" * 100_000_000, mtime=0), ": holds more than 67,108,864 bytes unzipped"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError) as refusal:
        read(tmp_path, text)

    assert str(refusal.value).startswith(f"{tmp_path / 'a.csv'}{message}")
    assert len(str(refusal.value).splitlines()) == 1


def test_pipe_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")

    with pytest.raises(TraceError, match=r"a.csv: is a named pipe; a regular file is needed"):
        read_csv(tmp_path / "a.csv")


def test_missing_columns_are_named_beside_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"a.csv: column b, d missing; found a, c"):
        read(tmp_path, "a,c\n1,2\n").need(["a", "b", "d"])


def test_text_that_looks_like_a_formula_is_marked_and_comes_back(tmp_path: Path) -> None:
    texts = ["=1+1", "+a", "-b", "@c", "\td", "'=e", "''-f", "'g", "h=1", ""]
    table = pd.DataFrame({"case": texts, "value": [-1.5, 0.30000000000000004, *range(8)]})

    text = csv_text(table)
    (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")

    cells = [row[0] for row in csv.reader(io.StringIO(text))][1:]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
    back = read_csv_text(tmp_path / "table.csv", keep_default_na=False)
    assert back["case"].tolist() == texts
    assert back["value"].tolist() == table["value"].tolist()


def test_what_was_not_recorded_is_nan_and_the_rest_is_held_to_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,\nNaN,2\n3,x\n", encoding="utf-8")
    table = read_csv(path)

    assert table.recorded("a", lambda given: given.counts("a")).tolist() == pytest.approx(
        [1, float("nan"), 3], nan_ok=True
    )
    with pytest.raises(TraceError, match="line 4: b is 'x'; a finite number is needed"):
        table.recorded("b", lambda given: given.numbers("b", 0, 9))
