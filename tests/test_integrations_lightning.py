"""One line for a user of Lightning."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import shrinknets_fast as sn

L = pytest.importorskip("lightning.pytorch", reason="needs lightning: pip install lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
Y = (X[:, :4].sum(1) > 0).long()


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    test_step = training_step

    def configure_optimizers(self):
        return torch.optim.Adam(sn.param_groups(self, lr=1e-3, filter_lr=5e-2))


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 32)


def trainer(folder, callback, epochs, **options):
    options = {"devices": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False, **options}
    return L.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, callbacks=callback, **options)


def size(model):
    return sum(p.numel() for p in model.parameters())


def shrink(**options):
    return sn.integrations.lightning.Shrink(X[:2], lam=2e-2, **options)


def fitted(folder, epochs=6, **options):
    torch.manual_seed(0)
    model = Net()
    first = trainer(folder, [shrink()], epochs, **options)
    first.fit(model, loader())
    return model, first


def test_half_of_it_leaves_and_a_checkpoint_goes_on_bit_by_bit(tmp_path):
    model, first = fitted(tmp_path)
    assert size(model) < size(Net()) / 2
    first.save_checkpoint(tmp_path / "last.ckpt")
    ended, _ = fitted(tmp_path, 8)
    fresh = Net()
    trainer(tmp_path, [shrink()], 8).fit(fresh, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert size(fresh) == size(ended)
    assert torch.equal(fresh(X), ended(X))


def test_an_older_bigger_checkpoint_makes_the_module_bigger_again(tmp_path):
    model, first = fitted(tmp_path, 1)
    first.save_checkpoint(tmp_path / "old.ckpt")
    expected, before = model(X).detach(), size(model)
    second = trainer(tmp_path, [shrink()], 6)
    second.fit(model, loader())
    assert size(model) < before
    second.test(model, loader(), ckpt_path=tmp_path / "old.ckpt", verbose=False)
    assert size(model) == before and torch.equal(model(X), expected)


def test_the_penalty_is_as_if_it_stood_in_the_loss(tmp_path):
    class InTheLoss(Net):
        def training_step(self, batch, index):
            return super().training_step(batch, index) + 2e-2 * sn.penalty(self)

    found = []
    for kind, lam in ((Net, 2e-2), (InTheLoss, 0.0)):
        torch.manual_seed(0)
        model = kind().double()
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X.double(), Y), 32)
        callback = sn.integrations.lightning.Shrink(X[:2].double(), lam=lam, every=1000)
        options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
        trainer(tmp_path, [callback], 1, **options).fit(model, data)
        found.append(torch.cat([theta.detach() for theta in sn.filters.thetas(model).values()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_what_would_not_shrink_is_refused(tmp_path):
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    with pytest.raises(sn.ShrinkError, match="StochasticWeightAveraging keeps a copy"):
        trainer(tmp_path, [shrink(), StochasticWeightAveraging(1e-2)], 1).fit(Net(), loader())
    with pytest.raises(sn.ShrinkError, match="has no example_input_array"):
        trainer(tmp_path, [sn.integrations.lightning.Shrink(lam=1e-2)], 1).fit(Net(), loader())
    with pytest.raises(sn.ShrinkError, match="lam is -1"):
        sn.integrations.lightning.Shrink(X[:2], lam=-1)
    warnings.resetwarnings()


ON_TWO_PROCESSES = """\
import sys
from pathlib import Path

import torch

sys.path.insert(0, {tests!r})
from test_integrations_lightning import Net, L, loader, shrink, size, trainer

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = []
    for checkpoint in (None, folder / "last.ckpt"):
        torch.manual_seed(0)
        model = Net()
        strategy = L.strategies.DDPStrategy(process_group_backend="gloo")
        run = trainer(folder, [shrink()], 6 if checkpoint else 4, strategy=strategy, devices=2, enable_checkpointing=False)
        run.fit(model, loader(), ckpt_path=checkpoint)
        run.save_checkpoint(folder / "last.ckpt")
        found.append((size(model), model.state_dict()))
    torch.save(found, folder / f"rank{{run.global_rank}}.pt")
"""


@pytest.mark.slow
def test_two_processes_shrink_alike_and_go_on(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(ON_TWO_PROCESSES.format(tests=str(Path(__file__).parent)))
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for (mine, here), (theirs, there) in zip(first, second, strict=True):
        assert mine == theirs
        assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    assert first[1][0] < size(Net()) / 2 and first[1][0] < first[0][0]
