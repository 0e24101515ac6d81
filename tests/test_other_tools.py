"""Tools that know nothing of filters get the function's weights, or an error that says so: never a network that is off by thetas.

Needs torch alone; the cases of other packages come with ``pip install '.[sweep]'``. What test_folded.py has is not repeated.
"""

import copy
import importlib
import io

import pytest
import torch
import torch.nn.functional as F
import torch.utils.mkldnn
from networks import kill, relative
from torch import nn
from torch.nn.utils import fusion, parametrize, prune
from torch.optim import swa_utils

import shrinknets_fast as sn

EXACT = 1e-10
FLOAT32 = 1e-5
NAMES = ("conv", "norm", "flat", "hidden", "norm1", "act", "head")
ALIVE = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1, 1], dtype=torch.float64)[:, None]  # of the hidden layer
READ, WRITTEN, LATE = [], [], []


def situation(cases, refused=None, wrong=None, needs="torch", tolerance=EXACT):
    """A case of a test below. refused: what the error says; wrong: why it is known to be silently another function."""

    def add(use):
        marks = [pytest.mark.xfail(strict=True, raises=AssertionError, reason=wrong)] if wrong else []
        cases.append(pytest.param(use, refused, needs, tolerance, id=use.__name__, marks=marks))
        return use

    return add


def network(conv, norm, linear, norm1):
    layers = conv(3, 6, 3), norm(6), nn.Flatten(), linear(96, 10), norm1(10), nn.ReLU(), nn.Linear(10, 4)
    model = nn.Sequential()
    for name, layer in zip(NAMES, layers, strict=True):
        model.add_module(name, layer)
    return model.double()


def filtered():
    return network(sn.FilteredConv2d, sn.FilteredBatchNorm2d, sn.FilteredLinear, sn.FilteredBatchNorm1d)


def plain():
    return network(nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.BatchNorm1d)


@torch.no_grad()
def twins():
    """(a network with features that are dead, its twin of torch's layers), both in evaluation; input (B, 3, 6, 6)."""
    model, twin = filtered(), plain()
    kill(model)
    model.hidden.theta.copy_(torch.where(ALIVE[:, 0] > 0, model.hidden.theta.abs() + 0.1, -0.5))
    for _ in range(3):
        model(inputs())
    state = model.state_dict()
    for key, value in twin.state_dict().items():
        layer, _, name = key.rpartition(".")
        scale = state.get(f"{layer}.theta") if name in ("weight", "bias") else None
        shape = -1, *[1] * (value.dim() - 1)
        value.copy_(state[key] if scale is None else state[key] * scale.clamp(min=0).reshape(shape))
    return model.eval(), twin.eval()


def inputs():
    return torch.randn(8, 3, 6, 6, dtype=torch.float64)


def with_reads(model, hidden=None):
    """The model's forward, by a module that reads the hidden layer's weights."""
    hidden = hidden or model.hidden

    def forward(x):
        h = model.flat(model.norm(model.conv(x)))
        return model.head(model.act(model.norm1(F.linear(h, hidden.weight, hidden.bias))))

    return forward


def in_float(model):
    model = copy.deepcopy(model).float()
    return model, lambda x: model(x.float()).double()


def saved(save, load, thing):
    buffer = io.BytesIO()
    save(thing, buffer)
    buffer.seek(0)
    return load(buffer)


# What comes out computes the model's function.


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


@situation(READ, refused="it is converted, without the layer's activation")
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


@situation(READ, refused="Could not export Python function call")
def jit_save(model, x):
    saved(torch.jit.save, torch.jit.load, torch.jit.trace(model, x))


@situation(READ, refused="supported")
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


@situation(READ, needs="safetensors.torch")
def safetensors_model(model, x, tools, tmp_path):
    other = filtered().eval()
    tools.save_model(model, tmp_path / "model.safetensors")
    tools.load_model(other, tmp_path / "model.safetensors")
    return other


@situation(READ, needs="torchinfo")
def torchinfo_summary(model, x, tools, tmp_path):
    tools.summary(model, input_data=x, verbose=0)
    return model


@situation(READ, needs="timm.layers", refused="cannot assign|is assigned|no parameter")
def timm_sync_batch_norm(model, x, tools, tmp_path):
    tools.convert_sync_batchnorm(copy.deepcopy(model))


@situation(READ, needs="timm.layers")
def timm_frozen_batch_norm(model, x, tools, tmp_path):
    frozen = tools.freeze_batch_norm_2d(model)
    assert not isinstance(frozen.norm, sn.FilteredBatchNorm2d) and not list(frozen.norm.parameters())
    return frozen


@situation(READ, needs="timm.utils.model")
def timm_reparameterize(model, x, tools, tmp_path):
    return tools.reparameterize_model(model)


@situation(READ, needs="torchao.quantization", refused="FilteredLinear.weight is assigned.*fold_filters")
def torchao_quantize(model, x, tools, tmp_path):
    tools.quantize_(copy.deepcopy(model).float(), tools.Int8WeightOnlyConfig())


@situation(READ, needs="torchao.quantization", tolerance=0.02)
def torchao_quantize_of_a_folded_one(model, x, tools, tmp_path):
    folded = sn.fold_filters(model.float(), x.float())
    tools.quantize_(folded, tools.Int8WeightOnlyConfig())
    model.double()
    return lambda x: folded(x.float()).double()


@situation(READ, needs="accelerate", refused="a parameter is made of it")
def accelerate_offload(model, x, tools, tmp_path):
    tools.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))


@situation(READ, needs="accelerate")
def accelerate_dispatch(model, x, tools, tmp_path):
    return tools.dispatch_model(model, {"": "cpu"})


@situation(READ, needs="accelerate")
def accelerate_prepare(model, x, tools, tmp_path):
    accelerator = tools.Accelerator(cpu=True)
    return accelerator.unwrap_model(accelerator.prepare(model))


@situation(READ, needs="accelerate", refused="fold: theta is on cpu, expected meta")
def accelerate_loads_into_an_empty_model(model, x, tools, tmp_path):
    tools.Accelerator(cpu=True).save_model(model, tmp_path)
    with tools.init_empty_weights():
        empty = filtered()
    tools.load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"})


@situation(READ, needs="onnxscript", tolerance=FLOAT32)
def onnx_of_a_folded_one(model, x, tools, tmp_path):
    folded = sn.fold_filters(model, x).float()
    program = torch.onnx.export(folded, (x.float(),), dynamo=True, verbose=False)
    reference = importlib.import_module("onnx.reference").ReferenceEvaluator(program.model_proto)
    name = program.model_proto.graph.input[0].name
    return lambda x: torch.as_tensor(reference.run(None, {name: x.float().numpy()})[0]).double()


@pytest.mark.parametrize(("use", "refused", "needs", "tolerance"), READ)
def test_what_a_tool_makes_computes_the_same_or_is_refused(use, refused, needs, tolerance, tmp_path):
    more = () if needs == "torch" else (pytest.importorskip(needs), tmp_path)
    model, x = twins()[0], inputs()
    expected, before = model(x).detach(), copy.deepcopy(model.state_dict())
    if refused is None:
        made = use(model, x, *more)
        assert made is None or relative(made(x).detach(), expected) <= tolerance
        return
    with pytest.raises(Exception, match=refused):
        use(model, x, *more)
    assert torch.equal(model(x), expected) and model.state_dict().keys() == before.keys()


# What is changed in place is changed as in the twin of torch's layers.


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


@situation(WRITTEN, wrong="what a compiled function writes to a computed weight is lost")
def compiled_write(model):
    @torch.compile(backend="eager")
    def double(layer):
        with torch.no_grad():
            layer.weight.mul_(2)

    double(model.hidden)


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


# Adapters of peft


class Adapted(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc1, self.fc2 = sn.FilteredLinear(12, 8, activation=activation), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.fc1(x))


ADAPTERS = {
    "lora": ("LoraConfig", {"r": 4, "init_lora_weights": False}),
    "rslora": ("LoraConfig", {"r": 4, "init_lora_weights": False, "use_rslora": True, "bias": "all"}),
    "dora": ("LoraConfig", {"r": 4, "init_lora_weights": False, "use_dora": True}),
    "adalora": ("AdaLoraConfig", {"init_r": 4, "total_step": 10, "init_lora_weights": False}),
    "ia3": ("IA3Config", {"feedforward_modules": [], "init_ia3_weights": False}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "init_weights": False}),
    "boft": ("BOFTConfig", {"boft_block_size": 4, "init_weights": False}),
    "loha": ("LoHaConfig", {"r": 4, "init_weights": False}),
    "lokr": ("LoKrConfig", {"r": 4, "init_weights": False}),
    "vera": ("VeraConfig", {"r": 4, "init_weights": False}),
    "hra": ("HRAConfig", {"r": 4, "init_weights": False}),
}
LORAS = {"lora", "rslora", "dora", "adalora"}  # the others assign weights once they are merged
SCALES_ONLY = {"ia3", "oft", "boft", "hra"}  # their zeros stay zeros


def adapted(name, dead=False, activation=None):
    peft = pytest.importorskip("peft")
    kind, options = ADAPTERS[name]
    model = Adapted(activation).double()
    if dead:
        kill(model)
    config = getattr(peft, kind)(target_modules=["fc1"], **options)
    return peft.get_peft_model(model, config).double().eval(), torch.randn(8, 12, dtype=torch.float64)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_merges_into_the_function(name):
    model, x = adapted(name)
    before = model(x).detach()
    model.merge_adapter()
    assert relative(model(x).detach(), before) < EXACT
    model.unmerge_adapter()
    assert relative(model(x).detach(), before) < 1e-6
    if name in LORAS:
        assert relative(model.merge_and_unload()(x).detach(), before) < 1e-6
    else:  # layer.weight = layer.weight
        with pytest.raises(TypeError, match="cannot assign"):
            model.merge_and_unload()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_a_dead_feature_is_refused_unless_it_only_scales(name):
    model, x = adapted(name, dead=True)
    before = model(x).detach()
    if name in SCALES_ONLY:
        model.merge_adapter()
        assert relative(model(x).detach(), before) < EXACT
        return
    with pytest.raises(sn.ShrinkError, match="is written to, but has theta -0.1"):
        model.merge_adapter()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["lora", "loha", "lokr"])
def test_an_adapter_of_a_layer_with_an_activation_does_not_merge(name):
    """It is added behind the activation, and would be merged in front of it."""
    model, x = adapted(name, activation="relu")
    before = model(x).detach()
    with pytest.raises(sn.ShrinkError, match="merges into it, in front of the layer's activation"):
        model.merge_adapter()
    assert torch.equal(model(x), before)


def test_features_of_an_adapted_layer_leave_where_the_adapter_lets_them():
    model, x = adapted("lora", dead=True)
    before = model(x).detach()
    assert not sn.GarbageCollector(model.base_model.model, x).collect().removed  # the adapter's output is alive
    assert relative(model(x).detach(), before) < EXACT


# Averages


def moved(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return other


def swa(model, then):
    average = swa_utils.AveragedModel(model)
    for m in (model, then):
        average.update_parameters(m)
    return average.module, 0.5


def ema(model, then):
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    for m in (model, then):
        average.update_parameters(m)
    return average.module, 0.1


def soup(model, then):
    average = filtered().eval()
    states = model.state_dict(), then.state_dict()
    average.load_state_dict(
        {k: v.lerp(states[1][k], 0.3) if v.is_floating_point() else v for k, v in states[0].items()}
    )
    return average, 0.3


def timm_ema(model, then):
    average = pytest.importorskip("timm.utils").ModelEmaV3(model, decay=0.9)
    average.update(then)
    return average.module, 0.1


def ema_pytorch(model, then):
    average = pytest.importorskip("ema_pytorch").EMA(model, beta=0.9, update_after_step=-1, update_every=1)
    average.update()
    with torch.no_grad():
        average.ema_model.load_state_dict(model.state_dict())
    average.update_moving_average(average.ema_model, then, current_decay=0.9)
    return average.ema_model, 0.1


@pytest.mark.parametrize("averaged", [swa, ema, soup, timm_ema, ema_pytorch])
def test_an_average_is_one_of_parameters(averaged):
    model, x = twins()[0], inputs()
    then = moved(model)
    average, share = averaged(model, then)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for p, q in zip(expected.parameters(), then.parameters(), strict=True):
            p.lerp_(q, share)
    assert relative(average.eval()(x), expected(x)) < 1e-6  # some keep their decay in float32
    assert relative(average(x), sn.fold_filters(average, x)(x)) < EXACT


def test_update_bn_averages_what_the_filters_let_through():
    model, twin = twins()
    batches = [inputs() for _ in range(3)]
    for m in (model, twin):
        swa_utils.update_bn(batches, m)
    x = inputs()
    assert relative(model.eval()(x), twin.eval()(x)) < EXACT


# Regularisers


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


# Thetas that are set at odd times

MOMENTS = {
    "forward pre-hook": lambda model, optimizer, kill: model[0].register_forward_pre_hook(kill),
    "forward hook": lambda model, optimizer, kill: model[0].register_forward_hook(kill),
    "backward pre-hook": lambda model, optimizer, kill: model[0].register_full_backward_pre_hook(kill),
    "backward hook": lambda model, optimizer, kill: model[0].register_full_backward_hook(kill),
    "hook of theta": lambda model, optimizer, kill: model[0].theta.register_hook(kill),
    "gradient arrives": lambda model, optimizer, kill: model[0].theta.register_post_accumulate_grad_hook(kill),
    "gradient arrives elsewhere": lambda model, optimizer, kill: model[2].weight.register_hook(kill),
    "step pre-hook": lambda model, optimizer, kill: optimizer.register_step_pre_hook(kill),
    "step post-hook": lambda model, optimizer, kill: optimizer.register_step_post_hook(kill),
    "learning-rate schedule": lambda model, optimizer, kill: torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 1.0 if kill() is None else 0.0
    ),
}
OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam foreach": lambda p: torch.optim.AdamW(p, lr=0.02, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.02, fused=True),
}


def small():
    torch.manual_seed(0)
    return nn.Sequential(sn.FilteredLinear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def trained(model, optimizer, batches, between=lambda: None):
    found = []
    for x in batches:
        loss = -model(x).tanh().sum() - model[0].theta.relu().sum()  # wants theta to grow
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        between()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_dead_at_an_odd_time_stays_dead_and_leaves_exactly(moment, optimizer):
    batches = torch.randn(8, 5, 6, dtype=torch.float64)
    runs = []
    for collects in (True, False):
        model = small()
        own = OPTIMIZERS[optimizer](model.parameters())
        gc = sn.GarbageCollector(model, batches[0], optimizers=own)
        now = []

        def kill(*_, model=model, now=now):
            if now:
                now.clear()
                model[0].theta.data[:4] = 0

        made = MOMENTS[moment](model, own, kill)
        between = made.step if isinstance(made, torch.optim.lr_scheduler.LRScheduler) else lambda: None
        trained(model, own, batches[:3], between)
        now.append(True)
        trained(model, own, batches[3:4], between)
        assert not now, "the moment never came"
        trained(model, own, batches[4:5], between)
        assert (model[0].theta[:4] == 0).all() and (model[0].theta[4:] > 0).all()
        assert not collects or gc.collect().removed == {"0": 4}
        runs.append(trained(model, own, batches[5:], between))
    torch.testing.assert_close(*runs, rtol=1e-11, atol=1e-11)


def test_between_unscaling_and_clipping():
    model, x = small(), torch.randn(5, 6, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    gc, scaler = sn.GarbageCollector(model, x, optimizers=optimizer), torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(-model(x).square().sum()).backward()
        scaler.unscale_(optimizer)
        if step == 2:
            model[0].theta.data[:4] = 0
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    assert gc.collect().removed == {"0": 4}


def test_optimizers_that_step_inside_backward():
    runs, batches = [], torch.randn(8, 5, 6, dtype=torch.float64)
    for collects in (True, False):
        model = small()
        own = {p: torch.optim.Adam([p], lr=0.02) for p in model.parameters()}
        gc = sn.GarbageCollector(model, batches[0], optimizers=own.values())
        for p in own:
            p.register_post_accumulate_grad_hook(lambda p, own=own: (own[p].step(), own[p].zero_grad()) and None)
        losses = []
        for k, x in enumerate(batches):
            loss = -model(x).square().sum()
            if k == 3:
                model[0].theta.data[:4] = 0  # between forward and backward
            loss.backward()
            losses.append(loss.detach())
            assert k < 3 or (model[0].theta == 0).sum() == 4 or collects
            if collects and k == 4:
                assert gc.collect().removed == {"0": 4}
        runs.append(torch.stack(losses))
    torch.testing.assert_close(*runs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "setting",
    [
        lambda m: nn.init.zeros_(m[0].theta),
        lambda m: nn.utils.vector_to_parameters(torch.zeros(12).double(), [m[0].theta]),
        lambda m: m.load_state_dict({**m.state_dict(), "0.theta": torch.zeros(12).double()}),
        lambda m: m.load_state_dict({"0.theta": nn.Parameter(torch.zeros(12).double())}, strict=False, assign=True),
        lambda m: torch._foreach_zero_([m[0].theta.detach()]),
        lambda m: m.state_dict()["0.theta"].clamp_(max=0),
        lambda m: torch.inference_mode()(lambda: m[0].theta.zero_())(),
    ],
    ids=["init", "vector", "load", "assign", "foreach", "state", "inference"],
)
def test_a_theta_set_by_any_means_is_in_what_is_read(setting):
    model = small()
    assert model[0].weight.abs().sum() > 0
    setting(model)
    assert model[0].weight.abs().sum() == 0 and model[0].bias.abs().sum() == 0


# transformers


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
