"""Hugging Face's Trainer, with one line more: python examples/hf_trainer.py [--tiny]   (needs transformers and accelerate)

A small text model, made here, learns which of two words a text has more often. What is left is folded and saved as a plain
model, which transformers opens without this package.
"""

import argparse
import tempfile

import torch
import transformers

import shrinknets_fast as sn


def made(inner):
    sizes = {
        "vocab_size": 30,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": inner,
    }
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, max_position_embeddings=16))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    inner, epochs = (128, 6) if parser.parse_args(argv).tiny else (512, 20)
    transformers.set_seed(0)
    transformers.logging.set_verbosity_error()
    ids = torch.randint(1, 30, (512, 12))
    ids[torch.rand(ids.shape) < 0.4] = 1
    ids[torch.rand(ids.shape) < 0.4] = 2
    labels = ((ids == 1).sum(1) > (ids == 2).sum(1)).long()
    data = [{"input_ids": text, "labels": label} for text, label in zip(ids, labels, strict=True)]

    model = made(inner)
    before = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "save_strategy": "no",
            "lr_scheduler_type": "constant",
        }
        options |= {"logging_strategy": "epoch", "per_device_train_batch_size": 32, "learning_rate": 1e-3}
        args = transformers.TrainingArguments(folder, num_train_epochs=epochs, **options)
        # a BERT's config has no number for the size of a head, nor for the pooler's: these stay
        rest = {"exclude": ["bert.pooler", *(f"bert.encoder.layer.{i}.attention" for i in range(2))]}
        shrink = sn.integrations.transformers.Shrink(lam=3e-4, filter_lr=2e-2, filters=rest, uniform="*intermediate*")
        trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[shrink])
        trainer.train()
        after = sum(p.numel() for p in model.parameters())
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        print(f"{before:,} to {after:,} parameters, loss {losses[0]:.3f} to {losses[-1]:.3f}")

        plain = sn.fold_filters(model, uniform="*intermediate*").eval()
        plain.save_pretrained(folder)
        again = type(plain).from_pretrained(folder)  # plain transformers: config.json has the width that is left
    torch.testing.assert_close(again(ids).logits, plain(ids).logits)
    print(f"opened again by its config (intermediate_size {again.config.intermediate_size}): the same outputs")
    return before, after, losses[0], losses[-1]


if __name__ == "__main__":
    main()
