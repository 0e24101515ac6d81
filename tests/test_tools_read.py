"""Tools of torch that read, fuse, convert, trace and save get the function's weights, or an error that says so.

What test_folded.py has is not repeated; the same for other packages is in test_packages_read.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.mkldnn
from situations import (
    FLOAT32,
    check_what_is_made,
    filtered,
    in_float,
    plain,
    saved,
    situation,
    twins,
    with_reads,
)
from torch import nn
from torch.nn.utils import fusion, parametrize, prune

import shrinknets_fast as sn

READ = []


@situation(READ)
def fuse_conv_bn_weights(model, x):
    conv, norm = model.conv, model.norm
    statistics = norm.running_mean, norm.running_var, norm.eps
    model.conv = nn.Conv2d(3, 6, 3)
    model.conv.weight, model.conv.bias = fusion.fuse_conv_bn_weights(
        conv.weight, conv.bias, *statistics, norm.weight, norm.bias
    )
    model.norm = nn.Identity()
    return model


@situation(READ)
def fuse_linear_bn_weights(model, x):
    hidden, norm = model.hidden, model.norm1
    statistics = norm.running_mean, norm.running_var, norm.eps
    model.hidden, model.norm1 = nn.Linear(96, 10), nn.Identity()
    fused = fusion.fuse_linear_bn_weights(hidden.weight, hidden.bias, *statistics, norm.weight, norm.bias)
    model.hidden.weight, model.hidden.bias = fused
    return model


@situation(READ, refused=r"FilteredConv2d.weight is assigned.*fold_filters")
def fuse_conv_bn_eval_both(model, x):
    fusion.fuse_conv_bn_eval(model.conv, model.norm)


@situation(READ, refused=r"FilteredLinear.weight is assigned.*fold_filters")
def fuse_linear_bn_eval_both(model, x):
    fusion.fuse_linear_bn_eval(model.hidden, model.norm1)


@situation(READ)
def fuse_after_folding(model, x):
    folded = sn.fold_filters(model, x)
    folded.conv = fusion.fuse_conv_bn_eval(folded.conv, folded.norm)
    folded.norm = nn.Identity()
    return folded


@situation(READ, refused="did not find fuser method")
def quantization_fuse_modules(model, x):
    torch.ao.quantization.fuse_modules(model, [["conv", "norm"]])


@situation(READ, tolerance=0.02)  # of int8
def quantize_dynamic(model, x):
    model, forward = in_float(model)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert type(quantized.hidden) is sn.FilteredLinear and type(quantized.head) is not nn.Linear
    return lambda x: quantized(x.float()).double()


@situation(READ, refused="from_float only works for")
def quantized_linear_from_float(model, x):
    hidden = in_float(model)[0].hidden
    hidden.qconfig = torch.ao.quantization.default_dynamic_qconfig
    torch.ao.nn.quantized.dynamic.Linear.from_float(hidden)


@situation(READ, tolerance=FLOAT32)
def quantization_observers(model, x):
    model, forward = in_float(model)
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    observed = torch.ao.quantization.prepare(model)
    return lambda x: observed(x.float()).double()


@situation(READ, refused="cannot be traced by torch.fx.*fold_filters")
def fx_fuse(model, x):
    from torch.fx.experimental.optimization import fuse

    fuse(model)


class EveryModule(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return True


@situation(READ)
def fx_with_layers_as_leaves(model, x):
    return torch.fx.GraphModule(model, EveryModule().trace(model))


@situation(READ)
def make_fx(model, x):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(model)(x)


@situation(READ, tolerance=FLOAT32)
def mkldnn_conv_and_norm(model, x):
    model, forward = in_float(model)
    front = torch.utils.mkldnn.to_mkldnn(model[:2])
    return lambda x: model[2:](front(x.float().to_mkldnn()).to_dense()).double()


@situation(READ, tolerance=FLOAT32)
def mkldnn_linear(model, x):
    model, forward = in_float(model)
    hidden = torch.utils.mkldnn.to_mkldnn(model[3:4])
    return lambda x: model[4:](hidden(model[:3](x.float()).to_mkldnn()).to_dense()).double()


@situation(READ, refused="to_mkldnn knows nothing of the layer's activation")
def mkldnn_linear_with_an_activation(model, x):
    torch.utils.mkldnn.to_mkldnn(sn.FilteredLinear(4, 3, activation="relu"))


@situation(READ, refused="cannot assign")
def sync_batch_norm(model, x):
    nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))


@situation(READ)
def channels_last(model, x):
    return nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)


@situation(READ)
def jit_freeze(model, x):
    return torch.jit.freeze(torch.jit.trace(model, x))


@situation(READ)
def jit_optimize_for_inference(model, x):
    return torch.jit.optimize_for_inference(torch.jit.trace(model, x))


@situation(READ)
def jit_save(model, x):
    return saved(torch.jit.save, torch.jit.load, torch.jit.trace(model, x))


@situation(
    READ, refused="^FilteredConv2d cannot be compiled by torch.jit.script; script what fold_filters.model. gives$"
)
def jit_script(model, x):
    torch.jit.script(model)


@situation(READ)
def jit_of_a_folded_one(model, x):
    return saved(torch.jit.save, torch.jit.load, torch.jit.script(sn.fold_filters(model, x)))


@situation(READ)
def export_with_decompositions(model, x):
    return torch.export.export(model, (x,)).run_decompositions().module()


@situation(READ)
def exported_and_loaded(model, x):
    return saved(torch.export.save, torch.export.load, torch.export.export(model, (x,))).module()


@situation(READ)
def compiled(model, x):
    return torch.compile(model, backend="eager", fullgraph=True)


@situation(READ)
def compiled_reads(model, x):
    return torch.compile(with_reads(model), backend="eager", fullgraph=True)


@situation(READ)
def forward_of_the_base_classes(model, x):
    def forward(x):
        h = nn.BatchNorm2d.forward(model.norm, nn.Conv2d.forward(model.conv, x))
        h = nn.Linear.forward(model.hidden, model.flat(h))
        return model.head(model.act(nn.BatchNorm1d.forward(model.norm1, h)))

    return forward


@situation(READ)
def copied_into_torch_s_layers(model, x):
    other = plain().eval()
    with torch.no_grad():
        for layer, mine in zip(other, model, strict=True):
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(layer, name, None) is not None:
                    getattr(layer, name).copy_(getattr(mine, name))
    return other


@situation(READ)
def low_rank(model, x):
    u, s, v = torch.linalg.svd(model.hidden.weight.detach(), full_matrices=False)
    first, second = nn.Linear(96, 10, bias=False), nn.Linear(10, 10)
    first.weight.data, second.weight.data, second.bias.data = s[:, None] * v, u, model.hidden.bias.data
    model.hidden = nn.Sequential(first, second)
    return model


@situation(READ)
def saved_whole(model, x):
    return saved(torch.save, lambda f: torch.load(f, weights_only=False), model)


@situation(READ, refused='Unexpected key.*"conv.theta"')
def state_of_a_plain_network(model, x):
    plain().load_state_dict(model.state_dict())


@situation(READ)
def vmap_over_an_ensemble(model, x):
    states = torch.func.stack_module_state([filtered().eval(), model])
    base = copy.deepcopy(model).to("meta")
    ensemble = torch.func.vmap(lambda s, x: torch.func.functional_call(base, s, (x,)), in_dims=(0, None))
    return lambda x: ensemble(states, x)[1]


@situation(READ)
def vmap_over_rows_that_reads(model, x):
    return lambda x: torch.func.vmap(with_reads(model))(x[:, None])[:, 0]


@situation(READ)
def jvp_that_reads(model, x):
    return lambda x: torch.func.jvp(with_reads(model), (x,), (x,))[0]


@situation(READ)
def functional_call_that_reads(model, x):
    """With other parameters than the layer's own."""
    other, state = filtered().eval(), dict(model.state_dict())
    other.forward = with_reads(other)
    return lambda x: torch.func.functional_call(other, state, (x,))


@situation(READ)
def a_replica_that_reads(model, x):
    """As nn.DataParallel makes one."""
    hidden = model.hidden._replicate_for_data_parallel()
    for name, parameter in model.hidden.named_parameters():
        setattr(hidden, name, parameter * 1)
    probe = torch.ones(1, 96, dtype=torch.float64)
    torch.testing.assert_close(hidden(probe), model.hidden(probe))
    return with_reads(model, hidden)


@situation(READ)
def pruned_theta(model, x):
    prune.identity(model.hidden, "theta")
    return with_reads(model)


class Clamped(nn.Module):
    def forward(self, theta):
        return theta.clamp(min=0)

    def right_inverse(self, theta):
        return theta


@situation(READ)
def parametrized_theta(model, x):
    parametrize.register_parametrization(model.hidden, "theta", Clamped())
    return with_reads(model)


@situation(READ, refused="cannot be computed in another way")
def old_spectral_norm(model, x):
    nn.utils.spectral_norm(model.hidden)


@situation(READ, refused="not an nn.Parameter")
def get_parameter(model, x):
    model.get_parameter("hidden.weight")


@situation(READ)
def distributed_state_dict(model, x):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    other = filtered().eval()
    set_model_state_dict(other, get_model_state_dict(model))
    return other


@situation(READ)
def parameters_to_vector(model, x):
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.data.zero_()
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), other.parameters())
    return other


@situation(READ)
def skip_init(model, x):
    hidden = nn.utils.skip_init(sn.FilteredLinear, 96, 10, dtype=torch.float64)
    hidden.load_state_dict(model.hidden.state_dict())
    model.hidden = hidden
    return model


@pytest.mark.parametrize(("use", "refused", "needs", "tolerance"), READ)
def test_what_a_tool_makes_computes_the_same_or_is_refused(use, refused, needs, tolerance, tmp_path):
    check_what_is_made(use, refused, needs, tolerance, tmp_path)


@pytest.mark.parametrize(
    "penalty",
    [
        lambda w: w.square().sum(),
        lambda w: w.flatten(1).norm(dim=1).sum(),
        lambda w: w.abs().sum(0).amax(),
        lambda w: torch.linalg.matrix_norm(w.flatten(1), 2),
        lambda w: (w.flatten(1) @ w.flatten(1).T - torch.eye(len(w), dtype=w.dtype)).square().sum(),
        lambda w: F.cosine_similarity(w[0].flatten(), w[2].flatten(), dim=0),
    ],
    ids=["l2", "group lasso", "l1 inf", "spectral", "orthogonal", "cosine"],
)
@pytest.mark.parametrize("name", ["conv", "hidden"])
def test_a_penalty_on_the_weight_has_the_function_s_gradients(penalty, name):
    layer = getattr(twins()[0], name)
    with torch.no_grad():
        layer.theta[[0, 2]] = 0.7
    weight, theta = layer._parameters["weight"], layer.theta
    by_hand = penalty(weight * theta.relu().reshape(-1, *[1] * (weight.dim() - 1)))
    expected = torch.autograd.grad(by_hand, (weight, theta))
    value = penalty(layer.weight)
    torch.testing.assert_close(value, by_hand)
    assert (theta <= 0).any()
    for got, wanted in zip(torch.autograd.grad(value, (weight, theta)), expected, strict=True):
        torch.testing.assert_close(got, wanted)
