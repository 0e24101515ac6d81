"""torchvision: the classifiers of :mod:`bench.zoo` and further tasks. Of detectors also what is dense: backbone and heads."""

import torch
from torch import nn

from ..zoo import FAMILIES

SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
VIDEO = {  # name -> shape of a clip
    "r3d_18": (3, 4, 32, 32), "mc3_18": (3, 4, 32, 32), "r2plus1d_18": (3, 4, 32, 32), "s3d": (3, 16, 224, 224),
}  # fmt: skip
DETECTION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"
)  # fmt: skip
MODELS = {
    **dict.fromkeys(FAMILIES, "classification"),
    **dict.fromkeys(SEGMENTATION, "segmentation"),
    **dict.fromkeys(VIDEO, "video"),
    **dict.fromkeys(DETECTION, "detection"),
    **{f"{name}_dense": "dense" for name in DETECTION},
    "raft_small": "flow",
}


class Dense(nn.Module):
    """A detector up to where it picks boxes by their values."""

    def __init__(self, detector):
        super().__init__()
        self.backbone, self.head = detector.backbone, getattr(detector, "head", None) or detector.rpn.head

    def forward(self, x):
        return self.head(list(self.backbone(x).values()))


def make(name):
    from torchvision import models

    kind = MODELS[name]
    if kind == "classification":
        size, arguments = FAMILIES[name]
        return getattr(models, name)(num_classes=10, **arguments), torch.randn(2, 3, size, size)
    if kind == "segmentation":
        model = getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=3)
        return model, torch.randn(2, 3, 64, 64)
    if kind == "video":
        return getattr(models.video, name)(num_classes=5), torch.randn(2, *VIDEO[name])
    if kind == "flow":
        model, size = models.optical_flow.raft_small(), (2, 3, 128, 128)
        return model, (torch.randn(size), torch.randn(size)), {"num_flow_updates": 3}
    model = getattr(models.detection, name.removesuffix("_dense"))(weights=None, weights_backbone=None)
    if kind == "dense":
        return Dense(model), torch.randn(2, 3, 128, 128)
    boxes = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    return model, ([torch.rand(3, 96, 96) for _ in range(2)], [dict(boxes) for _ in range(2)])
