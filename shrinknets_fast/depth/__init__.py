"""Learned depth: a gate behind each residual branch, and what becomes of a branch whose gate is dead."""

from .gated import Gated

__all__ = ["Gated"]
