"""Errors in one line."""

import re

import shrinknets_fast as sn


def portable(text):
    """Without the folders of one machine."""
    return re.sub(r"/[^ \"(]*/site-packages/", "", text)


def line(error):
    """The first line of what went wrong; the kind of error, where it is none of this package."""
    text = portable(re.sub(r"\s+", " ", next(iter(str(error).strip().splitlines()), "")))[:300]
    return text if isinstance(error, sn.ShrinkError) else f"{type(error).__name__}: {text}"
