"""Lightning, with one line more: python examples/lightning_digits.py [--tiny]   (needs lightning and scikit-learn)

The callback gives the module its filters, adds the penalty and collects; a checkpoint is opened at the size that is left.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import shrinknets_fast as sn


class Digits(L.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )
        self.losses = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(sn.param_groups(self, lr=1e-3, filter_lr=3e-2))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    width, epochs = (64, 3) if parser.parse_args(argv).tiny else (256, 20)
    L.seed_everything(0)
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)

    model = Digits(width)
    before = sum(p.numel() for p in model.parameters())
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    shrink = sn.integrations.lightning.Shrink(x[:2], lam=1e-3)  # the line
    trainer = L.Trainer(max_epochs=epochs, callbacks=[shrink], **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|last logging|sync_dist)")
        trainer.fit(model, DataLoader(TensorDataset(x, y), 32, shuffle=True))
    after = sum(p.numel() for p in model.parameters())
    first, last = (sum(part) / len(part) for part in (model.losses[:10], model.losses[-10:]))
    print(f"{before:,} to {after:,} parameters, loss {first:.3f} to {last:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "digits.ckpt")
        trainer.save_checkpoint(path)
        again = sn.integrations.lightning.load_from_checkpoint(Digits, path, x[:2], weights_only=False)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    print("opened again: the same outputs")
    return before, after, first, last


if __name__ == "__main__":
    main()
