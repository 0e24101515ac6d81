"""All that a run goes on with, as plain containers and tensors: ``torch.load(..., weights_only=True)`` reads it."""

import torch

from .refusal import Refusal


def of(trainer):
    """Between two steps. All processes call it."""
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "collector": trainer.collector.state_dict(),
        "proximal": trainer.proximal.state_dict() if trainer.proximal else None,
        "budget": trainer.budget.state_dict() if trainer.budget else None,
        "scaler": trainer.amp.scaler.state_dict(),
        "history": trainer.history.state_dict(),
        "order": trainer.order.get_state() if trainer.is_between_epochs else trainer.order_of_epoch,
        "random": random_states(trainer.data.labels.device),
        "epoch": trainer.epochs_done,
        "step": trainer.step_count,
        "seconds": trainer.seconds,
        "image_shape": list(trainer.data.images.shape[1:]),
        "images": len(trainer.data.labels),
        "arguments": recorded(trainer.arguments),
    }


def load(trainer, state):
    """Everything but the model, which was resized to it before the rest was made."""
    there, wanted = list(trainer.data.images.shape), [state["images"], *state["image_shape"]]
    if there != wanted:
        raise Refusal(f"it was trained on images of shape {wanted}, --data {trainer.arguments.data} has {there}")
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.collector.load_state_dict(state["collector"])
    if trainer.proximal:
        trainer.proximal.load_state_dict(state["proximal"])
    if trainer.budget:
        trainer.budget.load_state_dict(state["budget"])
    trainer.amp.scaler.load_state_dict(state["scaler"])
    trainer.history.load_state_dict(state["history"])
    trainer.order.set_state(state["order"])
    set_random_states(state["random"], trainer.data.labels.device)
    trainer.step_count, trainer.seconds = state["step"], state["seconds"]


def recorded(arguments):
    """What a run is told by; whether it was resumed makes no difference."""
    return {name: value for name, value in vars(arguments).items() if name != "resume"}


def random_states(device):
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_random_states(states, device):
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
