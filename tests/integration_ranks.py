"""Runs of Lightning, Trainer and accelerate on two processes, as torchrun starts them: python integration_ranks.py CASE FOLDER"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch

import shrinknets_fast as sn

HERE = Path(__file__).parent


def on_two_processes(case, folder, timeout=240):
    """What the function ``case`` returned on each of them."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [__file__, case, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{case}{rank}.pt") for rank in (0, 1)]


def weights(model):
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in model.named_parameters()}
    return {name: p.detach().clone() for name, p in whole.items()}


def lightning_ddp(folder):
    return lightning(folder, "ddp")


def lightning_parts(folder):
    return lightning(folder, "parts")


def lightning_whole(folder):
    return lightning(folder, "whole")


def lightning(folder, kind):
    """{"straight": 9 epochs, "resumed": from the checkpoint after 6 of them on, "saved": the checkpoint of a whole model}"""
    from test_integrations_lightning import L, Net, loader, shrunk_trainer
    from torch.distributed.fsdp import FSDPModule, fully_shard

    class Sharded(Net):
        def configure_model(self):
            mesh = self.device_mesh["data_parallel"]
            for layer in [*self.net[::2], self.net]:
                if not isinstance(layer, FSDPModule):
                    fully_shard(layer, mesh=mesh)

    def strategy():
        if kind == "ddp":
            return L.strategies.DDPStrategy(process_group_backend="gloo")
        options = {"data_parallel_size": 2, "tensor_parallel_size": 1}
        return L.strategies.ModelParallelStrategy(**options, save_distributed_checkpoint=kind == "parts")

    found = {}
    saved = folder / "epoch=5.ckpt"
    for case, checkpoint in (("straight", None), ("resumed", saved)):
        torch.manual_seed(0)
        model = Net() if kind == "ddp" else Sharded()
        keep = L.callbacks.ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=6, save_top_k=-1)
        callbacks = [] if checkpoint else [keep]
        shrunk_trainer(folder, callbacks, 9, strategy=strategy(), devices=2, enable_checkpointing=bool(callbacks)).fit(
            model, loader(), ckpt_path=checkpoint
        )
        found[case] = weights(model)
    if kind != "parts":
        found["saved"] = torch.load(saved, weights_only=False)["state_dict"]
    return found


def trainer_ddp(folder):
    """{"straight": 6 epochs, "resumed": 5 and 1, "loaded": the folder of the first, "logits": whether those are the same}"""
    from test_integrations_transformers import IDS, KIND, trainer

    whole = trainer(folder / "whole", 6)
    whole.train()
    trainer(folder / "parts", 5).train()
    rest = trainer(folder / "parts", 6)
    rest.train(resume_from_checkpoint=True)
    whole.save_model(folder / "end")
    torch.distributed.barrier()
    loaded = sn.integrations.transformers.from_pretrained(KIND, folder / "end")
    same = torch.equal(loaded(IDS).logits, whole.model.eval()(IDS).logits)
    found = {"straight": whole.model, "resumed": rest.model, "loaded": loaded}
    return {**{case: weights(model) for case, model in found.items()}, "logits": same}


def accelerate_ddp(folder):
    """{"straight": 50 steps, "resumed": from a state after 40 of them on}"""
    from test_integrations_accelerate import prepared, train

    run = prepared()
    train(*run, 40)
    run[0].save_state(folder / "state")
    run[0].wait_for_everyone()
    train(*run, 10)
    fresh = prepared()
    fresh[0].load_state(folder / "state")
    train(*fresh, 10)
    return {"straight": weights(run[1].module), "resumed": weights(fresh[1].module)}


def main(case, folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = globals()[case](Path(folder))
    torch.save(found, Path(folder) / f"{case}{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
