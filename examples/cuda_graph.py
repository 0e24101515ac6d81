"""A training step as one CUDA graph, recaptured when features have left: python examples/cuda_graph.py [--tiny]

A replay knows addresses and sizes, so a graph from before a collection must not run again: it is captured anew.
"""

import argparse

import torch
from torch import nn

import shrinknets_fast as sn

WARM_UP = 3  # steps outside a graph: what is made at first use is not made while capturing


def captured(step, optimizer):
    """(graph, loss): ``graph.replay()`` takes a step and writes its loss there. Takes WARM_UP steps before."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(aside)
    optimizer.zero_grad(
        set_to_none=True
    )  # backward makes gradients in the graph's own memory; a replay writes over them
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    return graph, loss


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    width, steps = (64, 300) if parser.parse_args(argv).tiny else (4096, 3000)
    if not torch.cuda.is_available():
        print("examples/cuda_graph.py needs a CUDA device, and torch sees none")
        return None
    torch.manual_seed(0)
    x = torch.randn(4096, 32, device="cuda")
    y = torch.sin(x[:, :4]).cumsum(1)

    model = nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    ).cuda()
    sn.add_filters(model, x[:8])
    optimizer = torch.optim.Adam(sn.param_groups(model, lr=1e-3, filter_lr=1e-2), capturable=True)
    gc = sn.GarbageCollector(model, x[:8], optimizers=optimizer, max_graphs=6)  # a size is a graph
    inputs, targets = x[:128].clone(), y[:128].clone()  # what a replay reads

    def step():
        loss = nn.functional.mse_loss(model(inputs), targets)
        (loss + 1e-3 * sn.penalty(model)).backward()
        optimizer.step()
        return loss.detach()

    before, graphs, losses = sum(p.numel() for p in model.parameters()), 1, []
    graph, loss = captured(step, optimizer)
    for k in range(steps):
        rows = torch.randint(len(x), (128,), device="cuda")
        inputs.copy_(x[rows])
        targets.copy_(y[rows])
        graph.replay()
        if k in (0, steps - 1):
            losses.append(loss.item())
        if gc.step():
            del graph, loss  # with their memory
            graph, loss = captured(step, optimizer)
            graphs += 1
    gc.collect()  # what has died since; the graph is not used any more
    after = sum(p.numel() for p in model.parameters())
    print(f"parameters {before:,} to {after:,}, loss {losses[0]:.3f} to {losses[1]:.3f}, {graphs} graphs")
    return before, after, *losses


if __name__ == "__main__":
    main()
