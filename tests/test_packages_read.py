"""Other packages that read, convert and save get the function's weights, or an error that says so.

Needs what ``pip install '.[sweep]'`` brings; a package that is not there is skipped.
"""

import copy
import importlib

import pytest
import torch
from situations import FLOAT32, check_what_is_made, filtered, situation

import shrinknets_fast as sn

READ = []


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
    check_what_is_made(use, refused, needs, tolerance, tmp_path)
