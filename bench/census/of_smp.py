"""Decoders of segmentation_models_pytorch on a ResNet-18, without weights."""

import torch

MODELS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet")


def make(name):
    import segmentation_models_pytorch as smp

    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=3)
    return model, torch.randn(2, 3, *[128 if name == "PAN" else 64] * 2)
