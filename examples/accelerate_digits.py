"""accelerate, with two lines more: python examples/accelerate_digits.py [--tiny]   (needs accelerate and scikit-learn)

On several processes: accelerate launch --cpu --num_processes 2 examples/accelerate_digits.py
"""

import argparse
import tempfile

import accelerate
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import shrinknets_fast as sn


def prepared(width, x):
    accelerator = accelerate.Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    sn.add_filters(model, x[:2])
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=1e-3, filter_lr=3e-2))
    # in place of accelerator.prepare(model, optimizer)
    return accelerator, *sn.integrations.accelerate.prepare(
        accelerator, model, optimizer, example_inputs=x[:2], lam=1e-3
    )


def size(model):
    return sum(p.numel() for p in model.parameters())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    width, epochs = (64, 3) if parser.parse_args(argv).tiny else (256, 20)
    accelerate.utils.set_seed(0)
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)

    accelerator, model, optimizer, gc = prepared(width, x)
    loader = accelerator.prepare(DataLoader(TensorDataset(x, y), 32, shuffle=True))
    before, losses = size(model), []
    for _ in range(epochs):
        for images, digits in loader:
            loss = nn.functional.cross_entropy(model(images), digits)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            gc.step()  # after it
            losses.append(loss.item())
    after = size(model)
    first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
    accelerator.print(f"{before:,} to {after:,} parameters, loss {first:.3f} to {last:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        (folder,) = accelerate.utils.broadcast_object_list([folder])
        accelerator.save_state(folder)
        accelerator.wait_for_everyone()
        accelerator, again, *_ = prepared(width, x)
        accelerator.load_state(folder)  # the fresh model becomes as small
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
        accelerator.wait_for_everyone()
    accelerator.print("opened again: the same outputs")
    return before, after, first, last


if __name__ == "__main__":
    main()
