"""What tools change in place is changed as in the twin of torch's layers, or refused."""

import pytest
import torch
import torch.nn.functional as F
from networks import relative
from situations import ALIVE, inputs, situation, twins
from torch import nn
from torch.nn.utils import prune

import shrinknets_fast as sn

WRITTEN, LATE = [], []


@situation(WRITTEN)
def merge(model):
    model.hidden.weight.data += torch.randn(10, 96).double() * ALIVE


@situation(WRITTEN, refused=r"FilteredLinear.weight: feature 1 is written to, but has theta -0.5")
def merge_into_the_dead(model):
    model.hidden.weight.data += torch.randn(10, 2).double() @ torch.randn(2, 96).double()


@situation(WRITTEN)
def addmm(model):
    model.hidden.weight.data.addmm_(torch.randn(10, 2).double() * ALIVE, torch.randn(2, 96).double())


@situation(WRITTEN)
def prune_ln_structured(model):
    prune.ln_structured(model.conv, "weight", 0.5, n=2, dim=0)


@situation(WRITTEN)
def prune_inputs_for_good(model):
    prune.ln_structured(model.hidden, "weight", 0.5, n=1, dim=1)
    prune.remove(model.hidden, "weight")


@situation(WRITTEN)
def prune_random(model):
    for name in ("weight", "bias"):
        prune.random_unstructured(model.hidden, name, 0.5)


@situation(WRITTEN)
def prune_from_a_mask(model):
    prune.custom_from_mask(model.hidden, "weight", torch.rand(10, 96) > 0.5)


@situation(WRITTEN)
def prune_globally_twice(model):
    layers = [(model.conv, "weight"), (model.hidden, "weight"), (model.head, "weight")]
    for amount in (0.3, 0.4):
        prune.global_unstructured(layers, prune.L1Unstructured, amount=amount)
    for layer, name in layers:
        prune.remove(layer, name)


@situation(WRITTEN, refused="feature 1 is written to")
def initialise_every_layer(model):
    model.apply(lambda m: nn.init.xavier_normal_(m.weight) if isinstance(m, nn.Linear) else None)


@situation(WRITTEN)
def zero_a_norm(model):
    nn.init.zeros_(model.norm.weight)


@situation(WRITTEN)
def standardise(model):
    with torch.no_grad():
        weight = model.conv.weight
        mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        weight.sub_(mean).div_(deviation + 1e-5)


@situation(WRITTEN)
def limit_norms(model):
    with torch.no_grad():
        model.hidden.weight.renorm_(2, 0, 0.05)
        model.hidden.weight.data.clamp_(-0.01, 0.01)


@situation(WRITTEN)
def round_to_int8(model):
    weight = model.hidden.weight.data
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-9) / 7
    model.hidden.weight.data = (weight / scale).round() * scale


@situation(WRITTEN)
def split_fused_weights(model):
    first, second = model.hidden.weight.data.split(5)
    first.mul_(2)
    second.mul_(3)


@situation(WRITTEN)
def row_by_row(model):
    with torch.no_grad():
        for k, row in enumerate(model.hidden.weight):
            row.mul_(k)


@situation(WRITTEN)
def swap_neurons(model):
    with torch.no_grad():
        model.hidden.weight[[0, 2]] = model.hidden.weight[[2, 0]].clone()


@situation(WRITTEN)
def permute_inputs(model):
    with torch.no_grad():
        model.hidden.weight.copy_(model.hidden.weight.flip(1))


@situation(WRITTEN)
def foreach_lerp(model):
    with torch.no_grad():
        torch._foreach_lerp_([model.hidden.weight], [torch.zeros(10, 96).double()], 0.5)


@situation(WRITTEN)
def vector_to_weights(model):
    weights = [model.hidden.weight, model.head.weight]
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(weights) * 2, weights)


@situation(WRITTEN)
def in_inference_mode(model):
    with torch.inference_mode():
        model.hidden.weight.mul_(2)


@situation(WRITTEN, refused="read-only")
def through_numpy(model):
    model.hidden.weight.detach().numpy()[:] *= 2


@situation(WRITTEN, refused="relu writes to it in place")
def in_place_by_a_flag(model):
    F.relu(model.hidden.weight.detach(), inplace=True)


@situation(WRITTEN, refused="writes to it in place")
def an_op_of_aten(model):
    torch.ops.aten.mul_.Scalar(model.hidden.weight.detach(), 2.0)


@situation(WRITTEN)
def under_vmap(model):
    def double(x):
        model.hidden.weight.data.mul_(2)
        return x

    torch.func.vmap(double)(torch.zeros(1))


@pytest.mark.parametrize(("use", "refused", "needs", "tolerance"), WRITTEN)
def test_what_a_tool_writes_is_the_function_or_is_refused(use, refused, needs, tolerance):
    (model, twin), x = twins(), inputs()
    before = model(x).detach()
    for module in (model, twin):
        torch.manual_seed(1)
        if refused and module is model:
            with pytest.raises(Exception, match=refused):
                use(model)
            assert torch.equal(model(x), before)
        else:
            use(module)
    assert relative(twin(x).detach(), before) > 0.0, "the case does nothing"
    assert refused or relative(model(x).detach(), twin(x).detach()) <= tolerance


@situation(LATE, refused="cannot assign")
def augmented(layer):
    with torch.no_grad():
        layer.weight *= 2  # done in place, and then Python assigns what comes back


@situation(LATE, refused="a parameter is made of it")
def old_weight_norm(layer):
    nn.utils.weight_norm(layer)  # takes the parameter away first


@pytest.mark.parametrize(("use", "refused", "needs", "tolerance"), LATE)
def test_what_is_refused_when_half_is_done_is_said(use, refused, needs, tolerance):
    with pytest.raises((TypeError, sn.ShrinkError), match=refused):
        use(sn.FilteredLinear(5, 7))


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="what a compiled function writes to a computed weight is lost"
)
def test_what_a_compiled_function_writes():
    @torch.compile(backend="eager")
    def double(layer):
        with torch.no_grad():
            layer.weight.mul_(2)

    layer, x = sn.FilteredLinear(5, 7, bias=False), torch.randn(3, 5)
    before = layer(x)
    double(layer)
    torch.testing.assert_close(layer(x), 2 * before)
