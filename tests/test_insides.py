"""The private names of torch: there in this version, and used nowhere but in insides.py."""

import ast
from pathlib import Path

import pytest
import torch

import shrinknets_fast
from shrinknets_fast import insides

FOLDER = Path(shrinknets_fast.__file__).parent
DOCUMENTED = {"_check", "_foreach_maximum_", "_foreach_minimum", "_foreach_mul"}  # by torch itself
OWN = {"_reading", "_companions", "_inputs", "_models", "_getframe"}  # of this package, of accelerate, and of Python


@pytest.mark.parametrize("name", insides.ATTRIBUTES)
def test_attributes_are_there(name):
    assert hasattr(insides.ATTRIBUTES[name](), name)


def test_the_memory_of_a_tensor_counts_its_users():
    tensor = torch.zeros(3)
    storage = tensor.untyped_storage()
    alone = insides.users_of(storage)
    view = tensor[1:]
    assert insides.users_of(storage) == alone + 1 and len(view) == 2


def test_modes_and_transforms_are_seen():
    seen = []

    def f(x):
        seen.append(insides.transforms_active())
        return x.sum()

    torch.func.grad(f)(torch.ones(2))
    assert seen == [True] and not insides.transforms_active()
    with torch.overrides.TorchFunctionMode():
        assert insides.function_modes_active()
    assert not insides.function_modes_active()


def private(name):
    return name.startswith("_") and not name.startswith("__")


def private_uses(tree):
    """(line, name) of every private name of torch that this file imports or reads from something that is not its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "torch":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if private(part))
        if isinstance(node, ast.Attribute) and private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, node.attr


def test_no_other_file_names_what_is_private():
    known = {*insides.ATTRIBUTES, *DOCUMENTED, *OWN}
    found = {
        f"{path.relative_to(FOLDER)}:{line}: {name}"
        for path in FOLDER.rglob("*.py")
        if path.name != "insides.py"
        for line, name in private_uses(ast.parse(path.read_text()))
        if name not in known
    }
    assert not found
