"""``fit`` finds a network for a table and ``predict`` uses it; what is refused leaves nothing behind."""

import io
import json
import random
import subprocess
import sys

import pytest
import torch

from shrinknets_fast.__main__ import main

FILES = ["fit.png", "plain.pt2", "summary.json"]
QUICK = ["--lam", "3e-3", "--epochs", "40", "--hidden", "32"]


def rows(count=150, seed=0):
    """(header, rows) with numbers, a category, missing cells; the class depends on both, the number on all."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        a, b, color = draw.gauss(100, 20), draw.gauss(0, 1e-3), draw.choice(["red", "blue", "green"])
        kind = "yes" if (a > 100) != (color == "red") else "no"
        value = 3 * a + 1e4 * b + (50 if color == "blue" else 0)
        missing = draw.random()
        cells = ["" if missing < 0.03 else f"{a:.6f}", f"{b:.9f}", "NA" if missing > 0.97 else color]
        found.append([*cells, kind, f"{value:.4f}"])
    return ["a", "b", "color", "kind", "value"], found


def write(path, header, found, mark=","):
    path.write_text("\n".join(mark.join(cells) for cells in ([header] if header else []) + found) + "\n")
    return str(path)


def call(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_classes(tmp_path, capsys):
    header, found = rows()
    data, out = write(tmp_path / "t.csv", header, found), str(tmp_path / "out")
    shown = call(capsys, "fit", data, "--target", "kind", "--exclude", "value", "--out", out, *QUICK)
    assert "classification (2 different texts), 150 rows, 3 columns" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["classes"] == ["no", "yes"] and summary["accuracy"] > 0.75 and summary["plain_max_abs_diff"] < 1e-9
    assert 0 < summary["sizes"][0] <= 32 and summary["rows"] == {"fitted": 120, "held_out": 30}
    new = [[cells[2], "ignored", cells[0], cells[1]] for cells in rows(seed=1)[1]]  # in another order, no target
    file = write(tmp_path / "new.csv", ["color", "more", "a", "b"], new, ";")
    lines = call(capsys, "predict", out, file).splitlines()
    right = [line == cells[3] for line, cells in zip(lines, rows(seed=1)[1], strict=True)]
    assert sum(right) > 0.75 * len(right)


def test_numbers_from_the_standard_input_without_a_header(tmp_path, capsys, monkeypatch):
    _, found = rows()
    data, out = write(tmp_path / "t.csv", None, found), str(tmp_path / "out")
    shown = call(capsys, "fit", data, "--target", "5", "--exclude", "4", "--out", out, *QUICK)
    assert "regression (150 different numbers in 150 rows)" in shown
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["r2"] > 0.8 and summary["plain_max_abs_diff"] < 1e-6
    answers = []
    for cells in ([c[:4] for c in found], found):  # without the target and with it
        text = "\n".join(",".join(c) for c in cells).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        answers.append(call(capsys, "predict", out).splitlines())
    assert answers[0] == answers[1] and len(answers[0]) == 150
    errors = [abs(float(line) - float(cells[4])) for line, cells in zip(answers[0], found, strict=True)]
    assert sum(errors) / 150 < 40  # the values spread over several hundred


def test_several_targets(tmp_path, capsys):
    header, found = rows()
    data, out = write(tmp_path / "t.csv", header, found), str(tmp_path / "out")
    call(capsys, "fit", data, "--target", "value", "b", "--exclude", "kind", "--out", out, *QUICK)
    lines = call(capsys, "predict", out, data).splitlines()
    assert len(lines) == 150 and all(len(line.split(",")) == 2 for line in lines)


def test_a_text_that_was_not_seen_and_a_missing_cell(tmp_path, capsys):
    header, found = rows()
    data, out = write(tmp_path / "t.csv", header, found), str(tmp_path / "out")
    call(capsys, "fit", data, "--target", "value", "--exclude", "kind", "--out", out, *QUICK)
    new = write(tmp_path / "new.csv", ["a", "b", "color"], [["100", "0", "violet"], ["", "0", "red"], ["100", "?", ""]])
    assert len([float(line) for line in call(capsys, "predict", out, new).splitlines()]) == 3


def test_the_program_needs_torch_alone(tmp_path, capsys):
    header, found = rows()
    data, out = write(tmp_path / "t.csv", header, found), tmp_path / "out"
    call(capsys, "fit", data, "--target", "kind", "--out", str(out), *QUICK)
    code = (
        "import sys; sys.modules['shrinknets_fast'] = sys.modules['sklearn'] = None\n"
        f"import torch; program = torch.export.load({str(out / 'plain.pt2')!r}).module()\n"
        "print(program(torch.zeros(5, 4, dtype=torch.float64)).sum(1).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(run.stdout) == pytest.approx([1.0] * 5)


def test_the_same_seed_gives_the_same_predictions(tmp_path, capsys):
    header, found = rows(60)
    data, answers = write(tmp_path / "t.csv", header, found), []
    for out in ("first", "second"):
        call(capsys, "fit", data, "--target", "value", "--out", str(tmp_path / out), *QUICK)
        answers.append(call(capsys, "predict", str(tmp_path / out), data))
    assert answers[0] == answers[1]


def refused(capsys, *arguments):
    try:
        status = main(list(arguments))
    except SystemExit as end:
        status = end.code
    assert status == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"python -m shrinknets_fast {arguments[0]}: error: ") and not shown.out
    return line


GOOD = "a,y\n" + "".join(f"{k},{k % 2}\n" for k in range(20))


@pytest.mark.parametrize(
    "text, more, words",
    [
        (GOOD + "1\n", [], "t.csv: row 22 ends after column 1"),
        (GOOD, ["--target", "z"], "--target z: t.csv has no such column in row 1"),
        (GOOD.replace(",1\n", ",0\n"), [], "row 2, column 'y': '0' is the one class"),
        (GOOD + "x,1\n", [], "row 22, column 'a': 'x' is not a number"),
        (GOOD + "3,\n", [], "row 22, column 'y': '' is no target"),
        (GOOD + "3,x\n", ["--task", "regression"], "row 22, column 'y': 'x' is not a number"),
        ("", [], "t.csv: row 1 is missing: the file is empty"),
        ("a,y\n1,2\n", [], "row 2 is the last: 1 rows, expected 10 or more"),
        (GOOD, ["--exclude", "a"], "no column to learn from"),
        (GOOD, ["--exclude", "y"], "--target y: is in --exclude"),
        (GOOD, ["--lam", "-1"], "--lam: '-1' is not"),
        (GOOD, ["--hidden", "0"], "--hidden: '0' is not"),
        (GOOD, ["--seed", "4294967296"], "--seed: '4294967296' is not"),
        (GOOD, ["--delimiter", ",,"], "--delimiter: ',,' is not one character"),
        (GOOD, ["--encoding", "latin-nine"], "--encoding latin-nine"),
        (GOOD, ["--out", "t.csv/out"], "--out t.csv/out"),
        (None, [], "t.csv: cannot be read: No such file"),
    ],
)
def test_what_is_refused_leaves_nothing(text, more, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    arguments = more if "--target" in more else ["--target", "y", *more]
    assert words in refused(capsys, "fit", "t.csv", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["t.csv"])


@pytest.mark.parametrize(
    "module, package", [("tqdm", "tqdm"), ("matplotlib.figure", "matplotlib"), ("sklearn", "scikit")]
)
def test_extra_not_installed(module, package, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(GOOD)
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(capsys, "fit", "t.csv", "--target", "y")
    assert package in line and "shrinknets_fast[sklearn]" in line


def test_predict_refuses(tmp_path, capsys):
    header, found = rows(60)
    data, out = write(tmp_path / "t.csv", header, found), tmp_path / "out"
    call(capsys, "fit", data, "--target", "value", "--exclude", "kind", "--out", str(out), *QUICK)
    new = tmp_path / "new.csv"
    for text, words in [
        ("a,b\n1,2\n", "new.csv: row 1: column 'color' is missing"),
        ("a,b,color\n1,x,red\n", "new.csv: row 2, column 'b': 'x' is not a number"),
        ("a,b,color\n1,2\n", "new.csv: row 2 ends after column 2"),
        ("1,2\n", "new.csv: row 1: 2 columns without known names, expected 4 columns, or 5 with the targets"),
        ("", "new.csv: row 1 is missing"),
    ]:
        new.write_text(text)
        assert words in refused(capsys, "predict", str(out), str(new))
    assert "no folder that fit wrote" in refused(capsys, "predict", str(tmp_path), data)
    (out / "plain.pt2").write_bytes(b"no program")
    assert "no folder that fit wrote" in refused(capsys, "predict", str(out), data)


def test_help(capsys):
    for command, names in (
        ("fit", "target task exclude category lam hidden seed out"),
        ("predict", "delimiter header"),
    ):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0 and all(f"--{name}" in text for name in names.split())


def test_the_fitted_rows_alone_decide_the_preparation(tmp_path, capsys):
    """What is held out must not be seen: its mean is not in the program's."""
    header, found = rows(60)
    data, out = write(tmp_path / "t.csv", header, found), tmp_path / "out"
    call(capsys, "fit", data, "--target", "value", "--exclude", "kind", "color", "--out", str(out), *QUICK)
    state = torch.export.load(out / "plain.pt2").state_dict
    mean = next(value for name, value in state.items() if name.endswith("mean") and value.numel() == 2)
    b = [float(cells[1]) for cells in found]
    assert float(mean[1]) != pytest.approx(sum(b) / len(b), rel=1e-6)
