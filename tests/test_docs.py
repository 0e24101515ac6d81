"""The code in README.md and docs/ does what it says."""

import re
import warnings
from pathlib import Path

import pytest
import torch

import shrinknets_fast as sn
from bench.registry import FAMILIES
from shrinknets_fast.graph.rules import registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.M | re.S)


def blocks(page):
    """(line, code) of each block of python."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        indent, code = found.groups()
        yield text.count("\n", 0, found.start()) + 1, re.sub(rf"^{indent}", "", code, flags=re.M)


@pytest.fixture(autouse=True)
def as_before():
    """What a page registers is its own; so are its random numbers."""
    tables = registry.RULES, registry.MODULES, FAMILIES
    before = [dict(table) for table in tables]
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("ignore")
        yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def ran(page):
    """The names that the page's blocks leave, run one after the other; faults show the page's own lines."""
    names = {"__name__": page.stem}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", [p for p in PAGES if any(blocks(p))], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran(page)


def test_the_rules_that_are_shown_are_exact_in_both_modes():
    """Beyond what the page itself asserts: both modes, several collections, gradients."""
    names = ran(ROOT / "docs" / "rules.md")
    registry.RULES[torch.ops.mylib.scale_rows.default] = names["scale_rows_rule"]  # the page ends with a wrong one
    for middle, pairs in ((names["Rows"](8), False), (names["Rotate"](), True), (names["Ranked"](8), False)):
        model = torch.nn.Sequential(sn.FilteredLinear(5, 8, init=0.7), middle, torch.nn.Linear(8, 2)).double()
        gc = sn.GarbageCollector(model, names["x"])
        for dead in ([1, 5], [0, 3]) if pairs else ([1, 2], [0]):
            x = torch.randn(7, 5, dtype=torch.float64)
            with torch.no_grad():
                model[0].theta[dead] = -0.1
                before = [model.train(mode)(x) for mode in (True, False)]
                assert sum(gc.collect().removed.values()) == len(dead)
                after = [model.train(mode)(x) for mode in (True, False)]
            for new, old in zip(after, before, strict=True):
                torch.testing.assert_close(new, old, rtol=0, atol=1e-12)


def test_every_verb_of_a_rule_is_on_the_page():
    from shrinknets_fast.graph.op import Op
    from shrinknets_fast.graph.rules import zeros
    from shrinknets_fast.graph.value import Zeros

    text = (ROOT / "docs" / "rules.md").read_text()
    verbs = [f"op.{name}" for name in vars(Op) if not name.startswith("_")]
    verbs += [f"zeros.{name}" for name in vars(Zeros) if not name.startswith("_") and name != "record"]
    verbs += [f"`{name}(" for name in ("either", "both", "changed", "carried") if hasattr(zeros, name)]
    assert [verb for verb in verbs if verb not in text] == []


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    names = [name for name in sn.__all__ if not name.startswith("__")]
    assert [name for name in names if not re.search(rf"^::: shrinknets_fast[\w.]*\.{name}$", text, re.M)] == []


def test_links_to_files_lead_somewhere():
    """On the site mkdocs checks them; here in the repository."""
    lost = []
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            if not (page.parent / target).exists():
                lost.append((page.name, target))
    assert not lost
