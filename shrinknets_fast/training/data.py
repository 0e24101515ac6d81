"""The data sets, whole, as two pairs of tensors: normalised float images (N, C, H, W) and integer labels."""

import contextlib
import io
import shutil
import socket
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from .refusal import Refusal, require

TORCHVISION = {"mnist": "MNIST", "fashion": "FashionMNIST", "cifar10": "CIFAR10"}
CONNECT_SECONDS = 20  # urllib waits for ever by default


class Data(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def to(self, device):
        return Data(*(tensor.to(device) for tensor in self))


def load(name, data_dir):
    """The data set ``name``; only digits needs neither ``data_dir`` nor a network."""
    if name == "digits":
        return digits()
    datasets = require("torchvision.datasets", "torchvision", f"--data {name}")
    kind, root = getattr(datasets, TORCHVISION[name]), Path(data_dir)
    try:
        if not is_there(kind, root):
            download(kind, root, name)
        train, test = kind(root, train=True), kind(root, train=False)
    except Refusal:
        raise
    except Exception as error:  # torchvision raises whatever its unpickling or its byte reading runs into
        raise Refusal(f"--data-dir {data_dir}: cannot read {name}: {error}") from error
    return normalised(*tensors(train), *tensors(test))


def digits():
    """scikit-learn's 1,797 8x8 images; a fixed fifth, drawn evenly from the classes, is the test set for every seed."""
    datasets = require("sklearn.datasets", "scikit-learn", "--data digits")
    selection = require("sklearn.model_selection", "scikit-learn", "--data digits")
    images, labels = datasets.load_digits(return_X_y=True)
    parts = selection.train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return normalised(train.view(-1, 1, 8, 8), train_labels, test.view(-1, 1, 8, 8), test_labels)


def is_there(kind, root):
    try:
        kind(root, train=True)
    except RuntimeError as error:
        if "not found" in str(error):  # torchvision's words for missing files, and for CIFAR-10 with a wrong checksum
            return False
        raise
    return True


def download(kind, root, name):
    """Download beside ``root`` and move what came, so that a failure leaves nothing behind."""
    nearest = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=nearest))
    except OSError as error:
        raise Refusal(f"--data-dir {root} lacks {name} and cannot be written: {error.strerror}") from error
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    print(f"downloading {name} to {root}", flush=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision reports every mirror that fails
            kind(scratch, train=True, download=True)
        root.mkdir(parents=True, exist_ok=True)
        shutil.copytree(scratch, root, dirs_exist_ok=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"--data-dir {root} lacks {name} and it cannot be downloaded: {reason}") from error
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(scratch, ignore_errors=True)


def tensors(dataset):
    """Images as (N, C, H, W) and labels; CIFAR-10 keeps its images as numpy (N, H, W, C)."""
    images = torch.as_tensor(dataset.data)
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images, torch.as_tensor(dataset.targets)


def normalised(images, labels, test_images, test_labels):
    """Mean 0 and deviation 1 per channel, both taken from the training images alone."""
    images, test_images = images.float(), test_images.float()
    deviation, mean = torch.std_mean(images, dim=(0, 2, 3), keepdim=True)
    for part in (images, test_images):
        part.sub_(mean).div_(deviation)
    return Data(images.contiguous(), labels.long(), test_images.contiguous(), test_labels.long())
