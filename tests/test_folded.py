"""weight and bias of a filtered layer are those of its function, to read and to write."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import shrinknets_fast as sn
from shrinknets_fast.folded_tensor import FoldedTensor

MAKERS = {
    "linear": lambda **k: sn.FilteredLinear(5, 7, **k),
    "conv1d": lambda **k: sn.FilteredConv1d(3, 7, 3, **k),
    "conv2d": lambda **k: sn.FilteredConv2d(4, 6, 3, groups=2, bias=False, **k),
    "conv3d": lambda **k: sn.FilteredConv3d(2, 7, 2, **k),
    "bn1d": lambda **k: sn.FilteredBatchNorm1d(7, **k),
    "bn2d": lambda **k: sn.FilteredBatchNorm2d(7, **k),
}


@pytest.fixture(params=MAKERS)
def layer(request):
    layer = MAKERS[request.param](dtype=torch.float64)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
        layer.theta.abs_().add_(0.1)[[1, 4]] = -0.5
    return layer


def scaled(layer, name):
    value = layer._parameters[name].detach()
    return value * layer.theta.detach().clamp(min=0).reshape(-1, *[1] * (value.dim() - 1))


def test_reading_gives_the_function_s_value(layer):
    for name in ("weight", "bias"):
        if layer._parameters[name] is None:
            assert getattr(layer, name) is None
            continue
        read = getattr(layer, name)
        assert_close(read, scaled(layer, name))
        assert (read[1] == 0).all() and not isinstance(read, nn.Parameter) and not read.is_leaf
        for plain in (read + 1, read.clone(), read.sum(), F.relu(read)):
            assert type(plain) is torch.Tensor
        assert (read.shape, read.dtype, read.device) == (layer._parameters[name].shape, torch.float64, read.device)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_dead_feature_reads_as_zero_whatever_it_holds(layer, poison):
    with torch.no_grad():
        layer._parameters["weight"][1] = poison
    assert (layer.weight[1] == 0).all() and layer.weight.isfinite().all()


def test_what_is_read_is_differentiable():
    layer, x = sn.FilteredLinear(5, 7, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.theta[2] = -1
    F.linear(x, layer.weight, layer.bias).square().sum().backward()
    by_hand = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    for got, p in zip(by_hand, layer.parameters(), strict=True):
        assert_close(got, p.grad)


def test_parameters_state_and_what_unfolded_shows_are_the_parameters_themselves(layer):
    own = dict(layer.named_parameters())
    assert list(layer.state_dict())[: len(own)] == list(own) and set(own) >= {"weight", "theta"}
    with sn.unfolded():
        assert layer.weight is own["weight"] and layer.bias is own.get("bias")
    assert layer.weight is not own["weight"]


def test_a_batch_norm_without_affine_parameters_still_has_its_filter():
    norm = sn.FilteredBatchNorm2d(4, affine=False)
    assert norm.affine and torch.equal(norm.weight.detach(), norm.theta.detach()) and norm.bias is None
    assert "affine=False" in repr(norm) and list(norm.state_dict())[0] == "theta"
    with sn.unfolded():
        assert not norm.affine and norm.weight is None
    with torch.no_grad(), pytest.raises(sn.ShrinkError, match="has no parameter"):
        norm.weight.fill_(1)


def test_such_a_batch_norm_says_so_however_its_theta_is_held():
    norm = sn.FilteredBatchNorm2d(4, affine=False)
    prune.identity(norm, "theta")
    assert norm.affine and torch.equal(norm.weight.detach(), norm.theta.detach())


# What tools do with a layer's weight: of a plain layer and of a filtered one the same function comes out.
WRITES = {
    "kaiming": lambda m: nn.init.kaiming_uniform_(m.weight),
    "trunc_normal": lambda m: nn.init.trunc_normal_(m.weight, std=0.02),
    "orthogonal": lambda m: nn.init.orthogonal_(m.weight),
    "constant": lambda m: nn.init.constant_(m.bias, 0.5),
    "merge into .data": lambda m: add_to_data(m),
    ".data =": lambda m: setattr(m.weight, "data", torch.arange(35.0).view(7, 5).double()),
    "copy_": lambda m: under_no_grad(lambda: m.weight.copy_(torch.arange(35.0).view(7, 5))),
    "rows": lambda m: under_no_grad(lambda: m.weight.__setitem__([0, 3], 0.0)),
    "through a view": lambda m: under_no_grad(lambda: m.weight.t().view(-1, 7)[2].mul_(3)),
    "through detach": lambda m: m.weight.detach().flatten()[::2].clamp_(min=0),
    "foreach": lambda m: under_no_grad(lambda: torch._foreach_mul_([m.weight, m.bias], 2.0)),
    "out": lambda m: under_no_grad(lambda: torch.add(torch.ones(7, 5, dtype=torch.float64), 1, out=m.weight)),
    "mask": lambda m: m.weight.data.mul_((torch.arange(35).view(7, 5) % 3 > 0).double()),
}


def add_to_data(layer):
    layer.weight.data += torch.arange(35.0).view(7, 5).double()


def under_no_grad(call):
    with torch.no_grad():
        call()


@pytest.mark.parametrize("name", WRITES)
def test_writing_sets_the_function(name):
    layer, x = sn.FilteredLinear(5, 7, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    plain = nn.Linear(5, 7, dtype=torch.float64)
    with torch.no_grad():
        for mine, theirs in ((layer.weight, plain.weight), (layer.bias, plain.bias)):
            mine.copy_(theirs)
    before = {key: (p, p._version) for key, p in layer.named_parameters()}
    for module in (layer, plain):
        torch.manual_seed(3)
        WRITES[name](module)
    assert_close(layer(x), plain(x))
    assert_close(layer.weight, plain.weight.detach())
    assert all(layer._parameters[key] is p for key, (p, _) in before.items())
    assert sum(p._version > version for p, version in before.values()) >= 1
    assert layer.theta._version == before["theta"][1]


def test_what_is_not_written_keeps_its_bits():
    layer = sn.FilteredLinear(50, 70)
    before = layer._parameters["weight"].detach().clone()
    with torch.no_grad():
        layer.weight[3, 4] = 1.0
        layer.weight.mul_(1.0)
    after = layer._parameters["weight"].detach()
    assert float(layer.weight[3, 4].detach()) == pytest.approx(1.0)
    before[3, 4] = after[3, 4]
    assert torch.equal(before, after)


def test_a_dead_feature_can_only_hold_zeros():
    layer = sn.FilteredLinear(5, 7)
    with torch.no_grad():
        layer.theta[2] = 0
        before = {k: v.clone() for k, v in layer.state_dict().items()}
        with pytest.raises(sn.ShrinkError, match=r"FilteredLinear.weight: feature 2 is written to, but has theta 0.0"):
            layer.weight.fill_(1)
        with pytest.raises(sn.ShrinkError, match="feature 2"):
            nn.init.normal_(layer.bias)
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
        layer.weight.mul_(2)  # zeros stay zeros
    assert_close(layer._parameters["weight"][3].detach(), before["weight"][3].double() * 2)


def test_what_was_read_before_the_parameter_changed_is_not_written_back():
    layer = sn.FilteredLinear(5, 7)
    old = layer.weight.detach()
    with torch.no_grad():
        layer._parameters["weight"].add_(1)
        with pytest.raises(sn.ShrinkError, match="read it again"):
            old.mul_(2)


NOT_A_PARAMETER = {
    "optimizer": lambda m: torch.optim.SGD([m.weight], lr=0.1),
    "optimizer under no_grad": lambda m: under_no_grad(lambda: torch.optim.SGD([m.weight], lr=0.1)),
    "Parameter": lambda m: nn.Parameter(m.weight),
    "Parameter of .data": lambda m: nn.Parameter(m.weight.data),
    "Parameter of a moved one": lambda m: nn.Parameter(m.weight.cpu()),
    "assigned": lambda m: setattr(m, "weight", nn.Parameter(torch.zeros(7, 5))),
    "assigned bias": lambda m: setattr(m, "bias", nn.Parameter(torch.zeros(7))),
    "assigned tensor": lambda m: setattr(m, "weight", torch.zeros(7, 5)),
    "tied": lambda m: setattr(nn.Linear(5, 7), "weight", m.weight),
    "registered": lambda m: sn.FilteredLinear(5, 7).register_parameter("other", m.weight),
    "grad": lambda m: m.weight.grad,
    "hook": lambda m: m.weight.register_hook(print),
    "key": lambda m: {m.weight: 1},
    "in place with a graph": lambda m: m.weight.mul_(2),
    "parametrized": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "torch.fx": lambda m: torch.fx.symbolic_trace(nn.Sequential(m)),
}


@pytest.mark.parametrize("name", NOT_A_PARAMETER)
def test_what_needs_a_parameter_is_refused_and_changes_nothing(name):
    layer, x = sn.FilteredLinear(5, 7), torch.randn(2, 5)
    before, names = layer(x), list(layer.state_dict())
    with pytest.raises((sn.ShrinkError, TypeError, ValueError, RuntimeError)) as raised:
        NOT_A_PARAMETER[name](layer)
    assert "\n" not in str(raised.value)
    assert torch.equal(layer(x), before) and list(layer.state_dict()) == names


def test_a_copy_of_what_was_read_is_a_tensor_like_any_other():
    layer = sn.FilteredLinear(5, 7)
    own = layer.weight.detach().clone()
    own[0] = 3
    assert (nn.Parameter(own)[0] == 3).all() and not (layer.weight[0] == 3).any()
    assert type(copy.deepcopy(layer.weight)) is torch.Tensor
    buffer = io.BytesIO()
    torch.save(layer.weight.detach(), buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), layer.weight.detach())
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.detach().numpy()[0] = 0


def test_freezing_freezes_the_parameter():
    layer = sn.FilteredLinear(5, 7)
    layer.weight.requires_grad = False
    assert not layer._parameters["weight"].requires_grad and layer._parameters["bias"].requires_grad
    layer.weight.requires_grad_(True)
    assert layer._parameters["weight"].requires_grad


@pytest.mark.parametrize(
    ("affine", "dims"), [(True, 1), (True, 2), (False, 2)]
)  # torch fuses no linear without a bias there
def test_fusing_a_filtered_batch_norm_is_exact(affine, dims):
    first = nn.Linear(3, 8) if dims == 1 else nn.Conv2d(3, 8, 3)
    norm = (sn.FilteredBatchNorm1d if dims == 1 else sn.FilteredBatchNorm2d)(8, affine=affine)
    model = nn.Sequential(first, norm).double()
    x = torch.randn(4, *[3, 6, 6][: 1 if dims == 1 else 3], dtype=torch.float64)
    with torch.no_grad():
        norm.theta[2] = -1
    model(x)
    model.eval()
    fused = (fuse_linear_bn_eval if dims == 1 else fuse_conv_bn_eval)(first, norm)
    assert_close(fused(x), model(x).detach())


def test_fusing_into_a_filtered_convolution_is_refused():
    conv, norm = sn.FilteredConv2d(3, 8, 3).eval(), nn.BatchNorm2d(8).eval()
    with pytest.raises(sn.ShrinkError, match=r"FilteredConv2d.weight is assigned.*fold_filters"):
        fuse_conv_bn_eval(conv, norm)


def test_pruning_masks_the_parameter():
    layer, x = sn.FilteredLinear(5, 7), torch.randn(2, 5)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    assert set(dict(layer.named_parameters())) == {"weight_orig", "bias", "theta"}
    zeros = layer.weight_mask == 0
    assert (layer.weight[zeros] == 0).all()
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    prune.remove(layer, "weight")
    assert isinstance(layer._parameters["weight"], nn.Parameter) and (layer.weight[zeros] == 0).all()
    layer(x).sum().backward()
    assert layer._parameters["weight"].grad is not None


def test_a_module_that_computes_with_the_weight_computes_the_function():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = sn.FilteredLinear(6, 8, init=0.5), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(F.linear(x, self.layer.weight.to(x.dtype), self.layer.bias) + self.layer(x))

    model, x = Shared().double(), torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        model.layer.theta[:3] = -1
    before = model(x)
    assert_close(torch.export.export(model, (x,)).module()(x).detach(), before.detach())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x).detach(), before.detach())
    gc = sn.GarbageCollector(model, x)
    assert gc.collect().removed == {"layer": 3}
    assert_close(model(x).detach(), before.detach())


def test_a_fused_transformer_layer_sees_the_filters():
    """torch's fast path in evaluation reads the weights of its linear layers."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    layer.linear1 = sn.FilteredLinear(8, 16)
    with torch.no_grad():
        layer.linear1.theta[::2] = -1
    x = torch.randn(2, 5, 8)
    expected = layer(x)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_copies_and_checkpoints():
    layer, x = sn.FilteredLinear(5, 7), torch.randn(2, 5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x)) and twin.weight.source.layer is twin
    other = sn.FilteredLinear(5, 7)
    other.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)
    assert torch.equal(other(x), layer(x))
    with torch.device("meta"):
        empty = sn.FilteredLinear(5, 7)
    assert empty.weight.shape == (7, 5) and empty.weight.is_meta
    assert torch.equal(torch.func.functional_call(empty, layer.state_dict(), (x,)), layer(x))
    assert isinstance(torch.jit.trace(layer, x)(x), torch.Tensor)


def test_transforms_see_plain_tensors():
    layer, x = sn.FilteredLinear(5, 7, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    own = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(parameters):
        layer_out = torch.func.functional_call(layer, parameters, (x,))
        return layer_out.square().sum()

    gradients = torch.func.grad(loss)(own)
    layer(x).square().sum().backward()
    for key, p in layer.named_parameters():
        assert_close(gradients[key], p.grad)
    assert not isinstance(layer.weight.detach().clone(), FoldedTensor)


def test_a_failure_inside_never_falls_back_to_the_parameter(monkeypatch):
    """An AttributeError of a property would send Python on to torch.nn.Module.__getattr__."""
    layer = sn.FilteredLinear(5, 7)

    def broken(*args):
        raise AttributeError("inside")

    monkeypatch.setattr("shrinknets_fast.folded.fold", broken)
    with pytest.raises(RuntimeError, match=r"FilteredLinear.weight cannot be read: inside"):
        layer.weight  # noqa: B018
