"""A CSV file's delimiter, header and types are found; what is wrong with it is one line with row and column."""

import math

import pytest

from shrinknets_fast.tables import columns, reading, targets
from shrinknets_fast.training.refusal import Refusal


def table(tmp_path, text, names=(), delimiter=None, header="auto", encoding="utf-8-sig"):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return reading.read(str(path), names, delimiter, header, encoding)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(mark, tmp_path):
    lines = [["a", "b", "y"], ["1.5", '"x, y; z|"', "2"], ["3", "w", "4"]]
    found = table(tmp_path, "\n".join(mark.join(line) for line in lines))
    assert found.header == ["a", "b", "y"] and found.rows == [["1.5", "x, y; z|", "2"], ["3", "w", "4"]]


@pytest.mark.parametrize(
    "first, names, header",
    [("a,b", (), True), ("1,b", (), False), (",b", (), False), ("2019,2020", ("2020",), True), ("a,b", ("3",), True)],
)
def test_the_header_is_found(first, names, header, tmp_path):
    found = table(tmp_path, f"{first}\n3,4\n", names)
    assert (found.header is not None) == header and len(found.rows) == (1 if header else 2)
    assert table(tmp_path, f"{first}\n3,4\n", header="no").header is None
    assert table(tmp_path, f"{first}\n3,4\n", header="yes").header == first.split(",")


def test_a_byte_order_mark_blank_rows_and_quoted_lines(tmp_path):
    found = table(tmp_path, b'\xef\xbb\xbfa,b\r\n\r\n1,"two\r\nlines"\r\n3, 4 \r\n')
    assert found.header == ["a", "b"] and found.rows == [["1", "two\r\nlines"], ["3", "4"]]
    assert found.numbers == [3, 4]  # as a spreadsheet counts


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "t.csv: row 1 is missing: the file is empty"),
        ("\n\n", "t.csv: row 1 is missing: the file is empty"),
        ("a,b\n", "t.csv: row 2 is missing: there is nothing below the header"),
        ("a,b\n1,2\n3\n", "t.csv: row 3 ends after column 1: 1 columns, but 2 in row 1"),
        ("a,b\n1,2\n3,4,5\n", "t.csv: row 3 goes on after column 2: 3 columns, but 2 in row 1"),
        (b"a,b\n1,\xe9\n", "t.csv: row 2, byte 3: 0xe9 is not utf-8"),
        ('a,b\n1,"2\n', "t.csv: row 2 cannot be read"),
        ("a,b\n1,\0\n", "t.csv: row 2 cannot be read"),
    ],
)
def test_a_broken_file(text, words, tmp_path):
    with pytest.raises(Refusal) as found:
        table(tmp_path, text)
    assert words in str(found.value) and "\n" not in str(found.value)


def found_columns(tmp_path, text, target="y", **options):
    read = table(tmp_path, text, [target])
    chosen = {"excluded": [], "categories": [], "decimal": ".", **options}
    return read, *columns.find(read, columns.names_of(read), [target], **chosen)


def test_numbers_categories_and_missing_cells(tmp_path):
    text = "n,c,y\n1,red,0\n,blue,1\nNA,,0\n4e1,red,1\n"
    read, found, left_out = found_columns(tmp_path, text)
    assert [column.values for column in found] == [None, ("blue", "red")] and not left_out
    matrix = columns.matrix(read, found, ".")
    assert matrix[:, 0].isnan().tolist() == [False, True, True, False] and matrix[3, 0] == 40
    assert matrix[[0, 1, 3], 1].tolist() == [1, 0, 1] and math.isnan(matrix[2, 1])
    _, found, _ = found_columns(tmp_path, text, categories=["n"])
    assert found[0].values == ("1", "4e1")


def test_what_is_left_out_is_said(tmp_path):
    rows = "".join(f"{k},name{k},,{k % 7},{k}\n" for k in range(60))
    _, found, left_out = found_columns(tmp_path, f",name,empty,n,y\n{rows}")
    assert [column.name for column in found] == ["n"]
    words = ["column 1 has no name", "column 'name' has 60 different texts in 60 rows", "column 'empty' is empty"]
    assert left_out == words
    with pytest.raises(Refusal, match="no column to learn from; column 1 has no name"):
        found_columns(tmp_path, f",name,empty,n,y\n{rows}", excluded=["n"])


@pytest.mark.parametrize(
    "cell, words",
    [
        ("abc", "row 9, column 'n': 'abc' is not a number, but 29 of 30 cells are numbers; else --category 'n'"),
        ("inf", "row 9, column 'n': 'inf' is not a finite number"),
        ("1_000", "row 9, column 'n': '1_000' is not a number"),
        ('"1,5"', "row 9, column 'n': '1,5' has a comma; --decimal ,"),
    ],
)
def test_a_cell_that_is_no_number(cell, words, tmp_path):
    cells = [str(k) for k in range(30)]
    cells[7] = cell
    with pytest.raises(Refusal) as error:
        read, found, _ = found_columns(tmp_path, "n,y\n" + "".join(f"{cell},1\n" for cell in cells))
        columns.matrix(read, found, ".")
    assert words in str(error.value)


def test_decimal_commas(tmp_path):
    read, found, _ = found_columns(tmp_path, "n;y\n1,5;1\n2;2\n", decimal=",")
    assert columns.matrix(read, found, ",").tolist() == [[1.5], [2.0]]


def test_names(tmp_path):
    read = table(tmp_path, "a,b,a\n1,2,3\n", ["a"])
    with pytest.raises(Refusal, match="row 1: columns 1 and 3 have the same name, 'a'"):
        columns.names_of(read)
    read = table(tmp_path, "a,b\n1,2\n", ["a"])
    with pytest.raises(Refusal, match="--target c: .* no such column in row 1; its columns are 'a', 'b'"):
        columns.checked_names(read, ["a", "b"], ["c"], "--target")
    with pytest.raises(Refusal, match="--target a: is given twice"):
        columns.checked_names(read, ["a", "b"], ["a", "a"], "--target")
    assert columns.names_of(table(tmp_path, "1,2\n3,4\n")) == ["1", "2"]


def target(tmp_path, cells, task=None, names=("y",)):
    read = table(tmp_path, ",".join(names) + "\n" + "".join(f"{cell}\n" for cell in cells), names, delimiter=",")
    return targets.find(read, list(names), list(names), task, ".")


@pytest.mark.parametrize(
    "cells, task",
    [
        (["a", "b"] * 5, "classification"),
        (["0", "1"] * 5, "classification"),
        (["0.5", "1.5"] * 50, "regression"),
        ([str(k % 21) for k in range(1000)], "regression"),  # more than 20 whole numbers
        (["1", "2", "3"], "regression"),  # one row of each
    ],
)
def test_the_task_is_found(cells, task, tmp_path):
    assert target(tmp_path, cells).task == task


def test_classes_that_are_the_same_number(tmp_path):
    assert target(tmp_path, ["1", "1.0", "2", "1", "0", "-0"] * 5).values[:6] == ["1", "1", "2", "1", "0", "0"]


def test_several_targets(tmp_path):
    found = target(tmp_path, ["1,2", "3,4"], names=("y", "z"))
    assert found.task == "regression" and found.values == [[1, 2], [3, 4]]
    with pytest.raises(Refusal, match="--target y z: --task classification, which takes one column, not 2"):
        target(tmp_path, ["1,2", "3,4"], "classification", ("y", "z"))


@pytest.mark.parametrize(
    "cells, task, words",
    [
        (["1", "", "3"], None, "row 3, column 'y': '' is no target: it is missing"),
        (["1", "NaN", "3"], None, "row 3, column 'y': 'NaN' is no target: it is missing"),
        (["a"] * 9, None, "row 2, column 'y': 'a' is the one class in all 9 rows; expected at least two"),
        (["1", "b", "3"], "regression", "row 3, column 'y': 'b' is not a number"),
        ([*map(str, range(30)), "b"], None, "row 32, column 'y': 'b' is not a number"),
        (["1.5", "inf", "3"], None, "row 3, column 'y': 'inf' is not a finite number"),
    ],
)
def test_a_bad_target(cells, task, words, tmp_path):
    # a second column keeps a row with an empty target from being a blank one
    with pytest.raises(Refusal) as error:
        rows = "".join(f"{cell},1\n" for cell in cells)
        read = table(tmp_path, f"y,x\n{rows}", ["y"])
        targets.find(read, ["y", "x"], ["y"], task, ".")
    assert words in str(error.value)
