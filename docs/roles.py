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
        if taken is not None and ".__doc__" in str(taken.value):
            source = cls.parent.members[str(taken.value).partition(".")[0]]
            cls.docstring = griffe.Docstring(source.docstring.value, parent=cls)

    def on_object(self, *, obj, **kwargs):
        public = obj.name in PLACES and obj.parent.is_module and ".ops." not in obj.path  # ops.filter has a Filter too
        if public and not obj.is_attribute and obj.docstring is None:
            griffe.logger.warning(f"{obj.path} is in the reference and has no docstring")


def link(found):
    name, _, member = found[1].partition(".")
    place = PLACES.get(name)
    return f"[`{found[1]}`][{place}{'.' * bool(member)}{member}]" if place else f"`{found[1]}`"
