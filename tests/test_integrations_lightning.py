"""One line for a user of Lightning."""

import warnings

import pytest
import torch
from integration_ranks import on_two_processes
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


def shrunk_trainer(folder, callbacks, epochs, **options):
    """As :func:`trainer`, with so little penalty that about a third stays."""
    return trainer(folder, [sn.integrations.lightning.Shrink(X[:2], lam=2e-3), *callbacks], epochs, **options)


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


def test_layers_that_configure_model_makes_need_their_filters_there(tmp_path):
    class Late(Net):
        def __init__(self, filters=True):
            super().__init__()
            self.made, self.net, self.filters = self.net, None, filters

        def configure_model(self):
            if self.net is None:
                self.net, self.made = self.made, None
                if self.filters:
                    sn.add_filters(self, X[:2])

        def parameters(self, recurse=True):
            return iter(()) if self.net is None else self.net.parameters()

    with pytest.raises(sn.ShrinkError, match="Late has no filters; where configure_model makes layers"):
        trainer(tmp_path, [shrink()], 1).fit(Late(filters=False), loader())
    model = Late()
    run = trainer(tmp_path, [shrink()], 6)
    run.fit(model, loader())
    assert size(model) < size(Net()) / 2
    run.save_checkpoint(tmp_path / "last.ckpt")
    fresh = Late()
    trainer(tmp_path, [shrink()], 6).test(fresh, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert size(fresh) == size(model) and torch.equal(fresh(X), model(X))


def test_a_module_is_loaded_from_a_shrunk_checkpoint(tmp_path):
    class Given(Net):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()
            self.seen = []

        def on_load_checkpoint(self, checkpoint):
            self.seen.append(sorted(checkpoint))

    load = sn.integrations.lightning.load_from_checkpoint
    model = Given(width=7)
    run = trainer(tmp_path, [shrink()], 6)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    options = {"weights_only": False, "map_location": "cpu"}
    found = load(Given, tmp_path / "last.ckpt", X[:2], **options)
    assert type(found) is Given and found.hparams == {"width": 7} and len(found.seen) == 1
    assert size(found) == size(model) < size(Net()) / 2
    assert torch.equal(found(X), model(X))
    trainer(tmp_path, [shrink()], 1).fit(found, loader())  # on from there
    with pytest.raises(sn.ShrinkError, match="filters is False and Given has none"):
        load(Given, tmp_path / "last.ckpt", X[:2], filters=False, **options)

    class Narrow(Given):
        def __init__(self, width):
            super().__init__(width)
            self.net[0] = nn.Linear(15, 128)

    with pytest.raises(sn.ShrinkError, match=r"net.0.weight has shape \(\d+, 16\), expected at most \(128, 15\)"):
        load(Narrow, tmp_path / "last.ckpt", X[:2, :15], **options)


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """What each strategy found, on each of two processes."""
    found = {}

    def of(kind):
        if kind not in found:
            found[kind] = on_two_processes(f"lightning_{kind}", tmp_path_factory.mktemp(kind))
        return found[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "parts", "whole"])
def test_two_processes_shrink_alike_and_go_on(kind, on_ranks):
    """DDP, and fully_shard with checkpoints of parts and of the whole model."""
    first, second = on_ranks(kind)
    for case in ("straight", "resumed"):
        assert first[case].keys() == second[case].keys()
        assert all(torch.equal(tensor, second[case][name]) for name, tensor in first[case].items())
    assert sum(tensor.numel() for tensor in first["straight"].values()) < size(Net()) / 2
    assert len(first["straight"]["net.0.theta"]) > 1 and len(first["straight"]["net.2.theta"]) > 1
    for name, tensor in first["straight"].items():
        assert torch.equal(first["resumed"][name], tensor), name
    for name, tensor in on_ranks("ddp")[0]["straight"].items():
        torch.testing.assert_close(first["straight"][name], tensor)


@pytest.mark.slow
def test_what_the_checkpoint_of_a_sharded_run_has(on_ranks):
    """The whole model, at its shrunk size."""
    saved = on_ranks("whole")[0]["saved"]
    assert {name: t.shape for name, t in saved.items()} == {
        name: t.shape for name, t in on_ranks("ddp")[0]["saved"].items()
    }
    assert saved["net.0.weight"].shape[0] < 100
