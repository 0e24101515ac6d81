"""One line for a user of Hugging Face's Trainer."""

import subprocess
import sys

import pytest
import torch
from integration_ranks import on_two_processes

import shrinknets_fast as sn

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers accelerate")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.randint(1, 30, (64, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": ids, "labels": int(ids[0] > 15)} for ids in IDS]
KIND = transformers.BertForSequenceClassification


def made():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "vocab_size": 30,
    }
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return KIND(transformers.BertConfig(**sizes, **dropout, max_position_embeddings=16))


def trainer(folder, epochs, model=None, **options):
    arguments = {"save_strategy": "epoch", "report_to": "none", "disable_tqdm": True, "use_cpu": True, **options}
    args = transformers.TrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=16, lr_scheduler_type="constant", **arguments
    )
    callback = sn.integrations.transformers.Shrink(lam=5e-2, filter_lr=1e-1)
    return transformers.Trainer(model or made(), args, train_dataset=DATA, eval_dataset=DATA, callbacks=[callback])


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_half_of_it_leaves_and_the_folder_opens(tmp_path):
    run = trainer(tmp_path, 6, logging_strategy="epoch")
    run.train()
    assert size(run.model) < size(made()) / 2
    for name in ("loss", "shrinknets/features", "shrinknets/parameters"):
        assert sum(name in row for row in run.state.log_history) == 6, name
    run.save_model(tmp_path / "end")
    loaded = sn.integrations.transformers.from_pretrained(KIND, tmp_path / "end")
    assert torch.equal(loaded(IDS).logits, run.model.eval()(IDS).logits)


def test_it_resumes_at_the_shrunk_size(tmp_path):
    whole = trainer(tmp_path / "whole", 6)
    whole.train()
    trainer(tmp_path / "parts", 5).train()
    rest = trainer(tmp_path / "parts", 6)
    rest.train(resume_from_checkpoint=True)
    assert size(rest.model) == size(whole.model)
    assert torch.equal(rest.model.eval()(IDS).logits, whole.model.eval()(IDS).logits)


def test_the_best_model_is_a_bigger_one(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "metric_for_best_model": "loss"}
    run = trainer(tmp_path, 6, greater_is_better=True, **best)  # the first, at the largest loss
    run.train()
    loaded = sn.integrations.transformers.from_pretrained(KIND, run.state.best_model_checkpoint)
    assert size(run.model) == size(loaded)
    assert torch.equal(loaded(IDS).logits, run.model.eval()(IDS).logits)


def test_an_optimizer_that_lacks_the_filters_is_refused(tmp_path):
    model = made()
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    optimizers = (torch.optim.Adam(model.parameters()), None)
    callbacks = [sn.integrations.transformers.Shrink(lam=1e-2)]
    with pytest.raises(sn.ShrinkError, match="is in no optimizer"):
        transformers.Trainer(model, args, train_dataset=DATA, callbacks=callbacks, optimizers=optimizers)


OPENED_ELSEWHERE = """\
import sys
sys.modules["shrinknets_fast"] = None
import torch, transformers
ids, kind, folder = torch.load(sys.argv[1]), *sys.argv[2:]
torch.save(getattr(transformers, kind).from_pretrained(folder)(ids).logits, sys.argv[1])
"""


def folded(dead, **options):
    """dead: features of each of the two layers."""
    model = made()
    sn.add_filters(model, IDS[:2])
    inner = [theta for name, theta in sn.filters.thetas(model).items() if "intermediate" in name]
    with torch.no_grad():
        for theta, count in zip(inner, dead, strict=True):
            theta[:count] = 0
    return sn.fold_filters(model, IDS[:2], **options).eval()


@pytest.mark.parametrize(("dead", "options"), [((200, 200), {}), ((200, 100), {"uniform": "*intermediate*"})])
def test_a_folded_model_is_opened_without_this_package(tmp_path, dead, options):
    model = folded(dead, **options)
    model.save_pretrained(tmp_path / "folded")
    assert model.config.intermediate_size == 256 - min(dead) and model.config.hidden_size == 16
    torch.save(IDS, tmp_path / "x.pt")
    command = [sys.executable, "-c", OPENED_ELSEWHERE, tmp_path / "x.pt", KIND.__name__, tmp_path / "folded"]
    subprocess.run(command, check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "x.pt"), model(IDS).logits)


def test_layers_of_several_widths_are_not_saved_where_nobody_could_open_them(tmp_path):
    with pytest.raises(sn.ShrinkError, match=r"has shape \(56, 16\), its config makes \(256, 16\).*uniform="):
        folded((200, 100)).save_pretrained(tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


@pytest.mark.slow
def test_two_processes_shrink_alike_and_go_on(tmp_path):
    first, second = on_two_processes("trainer_ddp", tmp_path)
    for case in ("straight", "resumed", "loaded"):
        assert first[case].keys() == second[case].keys() == first["straight"].keys()
        for name, tensor in first["straight"].items():
            assert torch.equal(first[case][name], tensor) and torch.equal(second[case][name], tensor), (case, name)
    assert sum(tensor.numel() for tensor in first["straight"].values()) < size(made()) / 2
    assert first["logits"] and second["logits"]
