"""What fold_filters gives, exported, compiled ahead of time or quantized, computes what the trained model does.

ONNX needs what ``pip install '.[export]'`` brings, torchao is in ``sweep``.
"""

import copy
import functools
import importlib.util
import shutil
from pathlib import Path

import networks
import pytest
import torch
from networks import kill, relative
from situations import FLOAT32, saved
from torch import nn

import shrinknets_fast as sn
from shrinknets_fast.training.models import lenet5, mlp

BATCHES = (1, 2, 5)
# Networks whose operations others have too; those are exported to ONNX in the quick tests.
ALIKE = ("dense", "width_347", "lenet", "channels_last")
ANY_BATCH = ({0: torch.export.Dim("batch")},)
NETWORKS = {}


def example(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(make):
    NETWORKS[make.__name__] = make
    return make


@network
def dense():
    return mlp((1, 8, 8), 20, 2), images(1, 8)


@network
def one_survivor():
    model = mlp((1, 8, 8), 20, 2)
    with torch.no_grad():
        model.hidden1.theta[1:] = 0
    return model, images(1, 8)


@network
def width_347():
    model = mlp((1, 8, 8), 400, 1)
    with torch.no_grad():
        model.hidden1.theta[347:] = 0
    return model, images(1, 8)


@network
def lenet():
    return lenet5((1, 8, 8), 24, 1), images(1, 8)


@network
def channels_last():
    model, x = constants()
    return model.to(memory_format=torch.channels_last), lambda n: x(n).to(memory_format=torch.channels_last)


@network
def constants():
    """Also dead features behind a sigmoid, whose constants are folded, and stand-alone filters."""
    return networks.conv_net(torch.float32), images(1, 14)


@network
def residual():
    """A tied trunk, gates, one of which is closed, and statistics of batch norms."""
    model, x = example("resnet_cifar").resnet(8, 1), images(3, 8)
    sn.add_filters(model, x(2), residual="tied", depth=True)
    for _ in range(3):
        model(x(8))
    gates = [theta for theta in sn.filters.thetas(model).values() if theta.numel() == 1]
    with torch.no_grad():
        gates[1].zero_()
    assert len(gates) == 3
    return model, x


@network
def transformer():
    model = example("gpt_text").GPT(20, 16, 2, 1, 12)
    sn.add_filters(model, torch.zeros(2, 12, dtype=torch.long))
    return model, lambda n: torch.randint(20, (n, 12))


def images(channels, side):
    return lambda n: torch.randn(n, channels, side, side)


@functools.cache
def trained(name):
    """(the filtered model in evaluation, shrunk once and with dead features since, {batch size: input})"""
    torch.manual_seed(1)
    model, draw = NETWORKS[name]()
    with torch.no_grad():
        for theta in sn.filters.thetas(model).values():
            theta.mul_(torch.empty_like(theta).uniform_(0.5, 1.5))  # those that add_filters placed are 1
    inputs = {n: draw(n) for n in BATCHES}
    collector = sn.GarbageCollector(model, inputs[2])
    if name not in ("one_survivor", "width_347"):
        kill(model, 0.2)
        assert sum(collector.collect().removed.values())
        kill(model, 0.2, seed=1)
    return model.eval(), inputs


@functools.cache
def folded(name):
    model, _ = trained(name)
    plain = sn.fold_filters(model)
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in model.parameters())
    return plain


def program_of(name, model):
    """For any batch size."""
    return torch.export.export(model, (trained(name)[1][2],), dynamic_shapes=ANY_BATCH)


@torch.no_grad()
def check(name, run, tolerance=FLOAT32):
    """run(input) is near what the trained model gives, for every batch size."""
    model, inputs = trained(name)
    for x in inputs.values():
        assert relative(run(x), model(x)) <= tolerance


def runtime(program):
    """What onnxruntime makes of an ONNX program; it gets the file's bytes alone."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[export]'")
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def onnx_of(model, *args, **options):
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason=f"needs {module}: pip install '.[export]'")
    return torch.onnx.export(model, *args, dynamo=True, verbose=False, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_export_for_any_batch(name):
    program = saved(torch.export.save, torch.export.load, program_of(name, folded(name)))
    assert "shrinknets_fast" not in str(program.graph)
    check(name, program.module())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in NETWORKS]
)
def test_onnx_for_any_batch(name):
    program = onnx_of(program_of(name, folded(name)))
    assert {node.domain for node in program.model_proto.graph.node} == {""}
    check(name, runtime(program))


def test_the_widths_are_those_that_are_left():
    assert folded("one_survivor").hidden1[0].out_features == folded("one_survivor").hidden2[0].in_features == 1
    assert folded("width_347").output.in_features == 347


@pytest.mark.parametrize("name", ["dense", "channels_last", "residual", "transformer"])
def test_a_model_with_filters_becomes_onnx_too(name):
    """Its filters in ONNX's own operations, dead features and all; from the model and from its torch.export program."""
    model, inputs = trained(name)
    for program in (
        onnx_of(model, (inputs[2],), dynamic_shapes=ANY_BATCH),
        onnx_of(program_of(name, model)),
    ):
        assert {node.domain for node in program.model_proto.graph.node} == {""}
        check(name, runtime(program))


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_torch_jit_needs_no_package():
    model, inputs = trained("constants")
    traced = saved(torch.jit.save, torch.jit.load, torch.jit.trace(model, inputs[2]))
    assert "shrinknets_fast::" not in str(traced.inlined_graph) and "PythonOp" not in str(traced.inlined_graph)
    check("constants", traced)


def torchao(module="torchao.quantization"):
    return pytest.importorskip(module, reason="needs torchao: pip install '.[sweep]'")


def wide_enough(module):
    return isinstance(module, nn.Linear) and module.in_features > 1


@pytest.mark.parametrize("name", ["dense", "one_survivor", "width_347", "lenet", "residual", "transformer"])
@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"], ids=["weights", "activations"]
)
def test_quantization_by_torchao(name, config):
    tools, quantized = torchao(), copy.deepcopy(folded(name))
    # torchao itself fails on a layer with one input
    tools.quantize_(quantized, getattr(tools, config)(), filter_fn=lambda m, _: wide_enough(m))
    layers = [m for m in quantized.modules() if wide_enough(m)]
    assert layers and all(type(m.weight) is not nn.Parameter for m in layers)
    check(name, quantized, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "width_347", "residual"])
def test_quantization_by_pt2e(name):
    steps, x86 = (
        torchao("torchao.quantization.pt2e.quantize_pt2e"),
        torchao("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"),
    )
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    _, inputs = trained(name)
    prepared = steps.prepare_pt2e(program_of(name, folded(name)).module(), quantizer)
    for x in inputs.values():
        prepared(x)
    converted = steps.convert_pt2e(prepared)
    assert "quantize_per_tensor" in str(converted.graph)
    check(name, converted, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_ahead_of_time_inductor(name, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    path = str(tmp_path / "network.pt2")
    torch._inductor.aoti_compile_and_package(program_of(name, folded(name)), package_path=path)
    check(name, torch._inductor.aoti_load_package(path))
