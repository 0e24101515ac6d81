"""Questions asked of a wrapper: the answers are those of the model inside. One process, which is a group of its own."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
from networks import kill, mlp, relative
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import shrinknets_fast as sn
from shrinknets_fast import collector
from shrinknets_fast.distributed.digest import TensorDigest, digest_of_words, words
from shrinknets_fast.wrapped import inwards, unwrapped


@pytest.fixture
def lone():
    """A process group with this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPS = {
    "ddp": DDP,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled ddp": lambda model: torch.compile(DDP(model), backend="eager"),
    "ddp of compiled": lambda model: DDP(torch.compile(model, backend="eager")),
}


@pytest.fixture(params=WRAPS)
def wrapped(request, lone):
    model = mlp(width=8)
    return model, WRAPS[request.param](model)


def inputs():
    return torch.randn(4, 16, dtype=torch.float64)


def test_what_is_inside_is_found_in_one_place(wrapped):
    model, wrapper = wrapped
    assert unwrapped(wrapper) is unwrapped(model) is model and list(inwards(wrapper))[-1] is model
    empty = nn.Sequential()
    assert unwrapped(empty) is empty  # which is false


def test_questions_have_the_answers_of_the_model_inside(wrapped):
    model, wrapper = wrapped
    kill(model)
    assert sn.penalty(wrapper) == sn.penalty(model)
    assert sn.features(wrapper) == sn.features(model) and set(sn.features(model)) == {"0", "1"}
    mine, theirs = sn.param_groups(wrapper, lr=1.0), sn.param_groups(model, lr=1.0)
    assert [list(map(id, g["params"])) for g in mine] == [list(map(id, g["params"])) for g in theirs]
    assert str(sn.coverage(wrapper, inputs())) == str(sn.coverage(model, inputs()))
    with torch.no_grad():
        model[0]._parameters["weight"][5] = model[0]._parameters["bias"][5] = 0
        model[0].theta.abs_()
    assert sn.mark_dead(wrapper, inputs()) == {"0": 1}


def test_fold_filters_of_a_wrapper_is_a_plain_model(wrapped):
    model, wrapper = wrapped
    kill(model)
    x = inputs()
    expected, pointers = model(x), [p.data_ptr() for p in model.parameters()]
    plain = sn.fold_filters(wrapper, x)
    assert type(plain) is nn.Sequential and relative(plain(x), expected) < 1e-13
    assert not sn.filters.named_filters(plain) and plain[-1].in_features < 8
    assert pointers == [p.data_ptr() for p in model.parameters()]


@pytest.mark.parametrize("into", ["model", "wrapper"])
def test_a_state_of_a_wrapper_is_loaded_by_the_names_inside(wrapped, into):
    model, wrapper = wrapped
    x = inputs()
    kill(model)
    sn.GarbageCollector(model, x).collect()
    fresh = mlp(width=8)
    for state in (wrapper.state_dict(), model.state_dict()):
        again = copy.deepcopy(fresh)
        sn.load_state_dict(DDP(again) if into == "wrapper" else again, state)
        assert torch.equal(again(x), model(x)) and again[0].out_features < 8
    with pytest.raises(sn.ShrinkError, match=r"missing \[.*'0.theta'"):
        sn.load_state_dict(fresh, {f"other.{key}": value for key, value in wrapper.state_dict().items()})


def test_a_child_that_is_called_module_is_no_prefix():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = mlp(width=8)

        def forward(self, x):
            return self.module(x)

    model, fresh = Holder(), Holder()
    kill(model)
    sn.GarbageCollector(model, inputs()).collect()
    sn.load_state_dict(fresh, model.state_dict())
    assert fresh.module[0].out_features == model.module[0].out_features < 8
    assert set(sn.features(model)) == {"module.0", "module.1"}


def test_filters_are_not_added_to_a_wrapper(lone):
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with pytest.raises(sn.ShrinkError, match="^add_filters: model is a DistributedDataParallel, .* then wrap$"):
        sn.add_filters(DDP(model), inputs())
    assert not sn.filters.named_filters(model)


def test_a_followed_copy_of_a_wrapper_is_one_of_the_model(lone):
    model = mlp(width=8)
    wrapper, x = DDP(model), inputs()
    average = torch.optim.swa_utils.AveragedModel(wrapper)
    gc = sn.GarbageCollector(wrapper, x, follow=average, follow_dead="drop")
    kill(model)
    gc.collect()
    average.update_parameters(wrapper)
    assert unwrapped(average.module)[0].out_features == model[0].out_features < 8
    average(x)


def test_a_wrapper_in_a_wrapper_that_is_not_of_torch_is_found(lone):
    """As a trainer's own module around the model."""

    class Task(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x)

    model = mlp(width=8)
    wrapper = DDP(Task(model), find_unused_parameters=True)
    gc = sn.GarbageCollector(model, inputs())
    reducer = wrapper.reducer
    kill(model)
    gc.collect()
    assert wrapper.reducer is not reducer
    wrapper(inputs()).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_dataparallel_is_refused():
    with pytest.raises(sn.ShrinkError, match="model is a DataParallel, expected the module inside it"):
        sn.GarbageCollector(nn.DataParallel(mlp()), inputs())


def delayed(model):
    first = model[0]._parameters
    return DDP(
        model, delay_all_reduce_named_params=[("0.bias", first["bias"])], param_to_hook_all_reduce=first["weight"]
    )


def in_backward(model):
    from torch.distributed.optim import _apply_optimizer_in_backward

    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    return DDP(model)


def mixed(model):
    wrapper = DDP(model)
    wrapper.mixed_precision = object()  # which makes streams, so not on the CPU
    return wrapper


def python_reducer(model):
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        return DDP(model)


CANNOT = {
    "mixed_precision": mixed,
    "delay_all_reduce_named_params": delayed,
    "apply_optimizer_in_backward": in_backward,
    "torch._dynamo.config.optimize_ddp='python_reducer'": python_reducer,
}


@pytest.mark.parametrize("name", CANNOT)
def test_options_that_cannot_be_rebuilt_are_named(name, lone):
    wrapper = CANNOT[name](mlp(width=8))
    with pytest.raises(sn.ShrinkError) as raised:
        sn.GarbageCollector(wrapper, inputs())
    assert str(raised.value) == f"model is a DistributedDataParallel with {name}, which cannot shrink; train without it"


def test_converting_keeps_theta_and_every_tensor():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), sn.FilteredBatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    held = {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    x = torch.randn(5, 3, 6, 6)
    expected = copy.deepcopy(model)(x)
    assert sn.FilteredSyncBatchNorm.convert_sync_batchnorm(model) is model
    assert type(model[1]) is sn.FilteredSyncBatchNorm and type(model[2][0]) is nn.SyncBatchNorm
    assert held == {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    assert torch.equal(model(x), expected)  # where there is one process


@pytest.mark.parametrize("grouped", [False, True])
def test_a_synchronised_norm_is_traced_folded_and_shrinks(grouped, request):
    """torch's own refuses the CPU where there are several processes; a trace is of one."""
    if grouped:
        request.getfixturevalue("lone")
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 2)).double()
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    sn.add_filters(model, x, exclude=["4"])
    assert type(model[1]) is sn.FilteredSyncBatchNorm and type(model[4]) is nn.SyncBatchNorm
    gc = sn.GarbageCollector(model, x)
    assert "forward" not in vars(model[4]) and "function" not in vars(model[1])
    with torch.no_grad():
        model[1].theta[:2] = 0
    model.eval()
    expected = model(x)
    assert gc.collect().removed == {"1": 2} and relative(model(x), expected) < 1e-13
    plain = sn.fold_filters(model, x)
    assert type(plain[1]) is nn.SyncBatchNorm and plain[1].num_features == 4 and relative(plain(x), expected) < 1e-13


def test_every_bit_is_in_the_digest():
    digest = TensorDigest(torch.device("cpu"))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensors = [torch.rand(37, dtype=dtype), torch.rand(5, dtype=torch.float64)]
        before = int(digest(tensors))
        assert before == int(TensorDigest(torch.device("cpu"))([t.clone() for t in tensors]))
        for place in range(37):
            changed = tensors[0].clone()
            changed.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])[place] ^= 1
            assert int(digest([changed, tensors[1]])) != before
        swapped = tensors[0].flip(0)
        assert int(digest([swapped, tensors[1]])) != before
    assert int(digest([])) == 0


def test_words_are_the_same_in_every_process():
    facts = {"a": words({"b": torch.arange(5), "c": [1.5, "d"]})}
    code = "import torch; from shrinknets_fast.distributed.digest import digest_of_words, words;"
    code += "print(digest_of_words({'a': words({'b': torch.arange(5), 'c': [1.5, 'd']})}))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sn.__path__[0] + "/.."
    )
    assert int(other.stdout) == digest_of_words(facts)


def test_one_process_compares_nothing(monkeypatch):
    """No communication, no look through the objects of the process."""
    import gc as objects

    from shrinknets_fast.distributed import comparison, wrappers

    def unexpected(*args):
        raise AssertionError

    monkeypatch.setattr(comparison, "Comparison", unexpected)
    monkeypatch.setattr(objects, "get_objects", unexpected)
    monkeypatch.setattr(wrappers.ddp, "rebuild", unexpected)
    model = mlp(width=8)
    gc = sn.GarbageCollector(model, inputs())
    assert gc.step() is None
    kill(model)
    assert gc.step().removed


def test_the_collector_knows_no_kind_of_wrapper():
    source = inspect.getsource(collector)
    assert not [word for word in ("DDP", "nn.parallel", "torch.distributed", "reducer") if word in source]


def test_where_the_host_does_not_wait_all_comes_a_step_later(lone, monkeypatch):
    """As on CUDA: at the same step on all ranks, however far the device is."""
    from shrinknets_fast.distributed import comparison

    made = comparison.Comparison.__init__

    def on_a_device(self, *args):
        made(self, *args)
        self._fresh = True

    monkeypatch.setattr(comparison.Comparison, "__init__", on_a_device)
    model = mlp(width=8)
    gc = sn.GarbageCollector(DDP(model), inputs())
    kill(model)
    assert gc.step() is None and gc.step().removed
    kept = model[0].theta
    model[0].theta = nn.Parameter(kept.detach().clone())
    assert gc.step() is None
    model[0].theta = kept
    with pytest.raises(sn.ShrinkError, match="0.theta was replaced"):
        gc.step()
    assert gc.step() is None and gc.step() is None


@pytest.mark.parametrize("call", [sn.add_filters, sn.GarbageCollector, sn.fold_filters, sn.coverage])
def test_what_is_no_module_is_named(call):
    class PipelineStage:
        pass

    with pytest.raises(sn.ShrinkError, match=r"model is a PipelineStage, .* \(pipeline parallelism is not supported\)"):
        call(PipelineStage(), torch.randn(2, 3))
    with pytest.raises(sn.ShrinkError, match=r"model is a dict, expected a torch.nn.Module$"):
        call({}, torch.randn(2, 3))
