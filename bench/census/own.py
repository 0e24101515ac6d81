"""Hand-written networks, as people write them."""

from . import own_images, own_sequences, own_tables

FAMILIES = (own_images, own_sequences, own_tables)
MODELS = {name: module for module in FAMILIES for name in module.MODELS}


def make(name):
    return MODELS[name].MODELS[name]()
