"""For mkdocstrings: Sphinx's roles in docstrings become links; a docstring that is another class's is found."""

import re
from pathlib import Path

import griffe

ROLE = re.compile(r":(?:class|meth|func|mod):`~?([\w.]+)`")
PAGE = (Path(__file__).parent / "reference.md").read_text()
PLACES = {path.rpartition(".")[2]: path for path in re.findall(r"^::: ([\w.]+)$", PAGE, re.M)}


class Roles(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(link, obj.docstring.value).replace("(*, ", "(\\*, ")  # no emphasis

    def on_class_members(self, *, node, cls, **kwargs):
        taken = cls.members.get("__doc__")
        if taken is not None and str(taken.value).endswith(".__doc__"):
            source = cls.parent.members[str(taken.value).partition(".")[0]]
            cls.docstring = griffe.Docstring(source.docstring.value, parent=cls)


def link(found):
    name, _, member = found[1].partition(".")
    place = PLACES.get(name)
    return f"[`{found[1]}`][{place}{'.' * bool(member)}{member}]" if place else f"`{found[1]}`"
