"""Models of which each rank has a replica or a part: who has to agree, and what stands around the model."""

from .around import Around
from .digest import Facts, facts_about
from .wrappers import Wrappers

__all__ = ["Around", "Facts", "Wrappers", "facts_about"]
