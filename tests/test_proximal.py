import pytest
import torch
from networks import mlp
from test_optimizers import train

import shrinknets_fast as sn


def one_filter(values):
    model = sn.Filter(len(values), dtype=torch.float64)
    with torch.no_grad():
        model.theta.copy_(torch.tensor(values))
    return model


def test_sgd_threshold_is_lr_times_lam_and_gives_exact_zeros():
    model = one_filter([0.5, 0.004, 0.02, -0.1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sn.ProximalL1(optimizer, model, lam=0.05)
    model.theta.grad = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(model.theta.detach(), torch.tensor([0.395, 0, 0.015, 0], dtype=torch.float64))
    assert (model.theta[[1, 3]] == 0).all()


def test_adam_threshold_is_its_own_step_size():
    model = one_filter([5.0, 5.0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sn.ProximalL1(optimizer, model, lam=0.1)
    model.theta.grad = torch.tensor([0.5, -2.0], dtype=torch.float64)
    optimizer.step()
    # after one step v / (1 - beta2) = grad^2, so the step size is lr / |grad|
    expected = torch.tensor([5 - 0.01 - 0.1 * 0.01 / 0.5, 5 + 0.01 - 0.1 * 0.01 / 2], dtype=torch.float64)
    torch.testing.assert_close(model.theta.detach(), expected, atol=1e-8, rtol=0)


def test_a_parameter_without_a_gradient_took_no_step():
    model = one_filter([0.5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sn.ProximalL1(optimizer, model, lam=1.0)
    optimizer.step()
    assert float(model.theta) == 0.5


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_training_kills_features_that_stay_dead(kind):
    torch.manual_seed(0)
    model = mlp(depth=1)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
    sn.ProximalL1(optimizer, model, lam=0.05)
    died = torch.zeros(32, dtype=torch.bool)

    def look():
        assert not (model[0].alive & died).any()
        died.logical_or_(~model[0].alive)

    train(model, optimizer, 600, lam=0.0, after=look)
    assert 0 < int(died.sum()) < 32
    assert (model[0].theta[died] == 0).all()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_step_that_grad_scaler_skips_moves_nothing(kind):
    model = one_filter([5.0, 5.0]).float()
    optimizer = kind(model.parameters(), lr=0.01, fused=True)
    sn.ProximalL1(optimizer, model, lam=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for value, moves in ((float("inf"), False), (0.5, True)):
        model.theta.grad = torch.full((2,), value)
        scaler.scale(torch.zeros(()))  # the scale comes into being
        scaler.step(optimizer)
        scaler.update()
        assert bool((model.theta != 5).all()) is moves and model.theta.isfinite().all()


def test_remove_and_state():
    model = one_filter([0.5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    proximal = sn.ProximalL1(optimizer, model, lam=1.0)
    proximal.load_state_dict({"lam": 2.0})
    assert proximal.state_dict() == {"lam": 2.0} and proximal.lam == 2.0
    proximal.remove()
    model.theta.grad = torch.zeros(1, dtype=torch.float64)
    optimizer.step()
    assert float(model.theta) == 0.5


@pytest.mark.parametrize("lam", [-1, float("nan"), "a", True])
def test_bad_lam_is_named(lam):
    model = one_filter([0.5])
    with pytest.raises(sn.ShrinkError, match="lam is"):
        sn.ProximalL1(torch.optim.SGD(model.parameters(), lr=0.1), model, lam)


def test_unknown_optimizer_is_named():
    model = one_filter([0.5])
    with pytest.raises(sn.ShrinkError, match="Adadelta"):
        sn.ProximalL1(torch.optim.Adadelta(model.parameters()), model, 0.1)
