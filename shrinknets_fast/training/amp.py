"""``--amp``: forward in a half type; weights, thetas, optimizer and loss stay float32."""

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ALIGN = 8  # what tensor cores want of sizes


class Amp:
    """``forward()``: the context of a forward; ``scaler`` scales the loss where float16 would lose small gradients."""

    def __init__(self, name, device):
        self.dtype, self.kind = DTYPES.get(name), device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def forward(self):
        return torch.autocast(self.kind, self.dtype, enabled=self.dtype is not None)

    def widened(self, logits):
        """For the loss."""
        return logits if self.dtype is None else logits.float()

    def align(self, given):
        """Of the collector; weights are float32, so it cannot see that products are not."""
        return ALIGN if given is None and self.dtype is not None and self.kind == "cuda" else given
