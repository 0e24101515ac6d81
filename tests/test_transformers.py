"""What a Hugging Face model does to its own layers, where some of them are filtered."""

import pytest
import torch
from networks import kill

import shrinknets_fast as sn


def bert(**options):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 30,
    }
    ids = torch.randint(0, 30, (2, 5))
    model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, **options)).eval()
    model = sn.add_filters(model, (ids,)).eval()
    kill(model)
    return model, ids


@pytest.mark.parametrize("change", ["resize_token_embeddings", "tie_weights", "init_weights"])
def test_transformers_changes_leave_the_rest_alone(change):
    model, ids = bert()
    before = model(ids).logits
    getattr(model, change)(*[34] if change == "resize_token_embeddings" else [])
    torch.testing.assert_close(model(ids).logits[..., :30], before)


def test_transformers_initialise_only_what_lives():
    model, ids = bert()
    model.apply(lambda m: setattr(m, "_is_hf_initialized", False))
    with pytest.raises(sn.ShrinkError, match="is written to, but has theta"):
        model.apply(model._init_weights)


def test_transformers_do_not_tie_a_filtered_head():
    model, ids = bert()
    model.cls.predictions.decoder = sn.FilteredLinear(16, 30)
    with pytest.raises(sn.ShrinkError, match="FilteredLinear.weight is assigned"):
        model.tie_weights()


def test_transformers_resize_a_filtered_head():
    """Into a plain layer with the function's rows."""
    model, ids = bert(tie_word_embeddings=False)
    model.cls.predictions.decoder = sn.FilteredLinear(16, 30)
    kill(model)
    before = model(ids).logits
    model.resize_token_embeddings(34)
    torch.testing.assert_close(model(ids).logits[..., :30], before)
