"""The data sets: torchvision's files are read, normalised, fetched where missing, refused in one line where broken."""

import pickle
import struct
from argparse import Namespace
from urllib.error import URLError

import numpy
import pytest
import torch
from torchvision import datasets

from shrinknets_fast.training.data import load
from shrinknets_fast.training.models import build
from shrinknets_fast.training.refusal import Refusal


def write_idx(root, family, train=40, test=20):
    """Random images in the byte format of MNIST."""
    raw = root / family / "raw"
    raw.mkdir(parents=True)
    random = numpy.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=numpy.uint8)
        labels = random.integers(0, 10, count, dtype=numpy.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def write_cifar10(root, monkeypatch, count=12):
    """Random images in the pickles of CIFAR-10; their checksums are not the published ones."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(0)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for name in names:
        images = random.integers(0, 256, (count, 3072), dtype=numpy.uint8)
        batch = {"data": images, "labels": random.integers(0, 10, count).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, None] for name in names[:-1]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [[names[-1], None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": None})


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **options):
        raise URLError("no network")

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", refuse)
    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", refuse)


def assert_normalised(data, shape, train, test):
    assert data.images.shape == (train, *shape) and data.test_images.shape == (test, *shape)
    assert data.images.dtype == torch.float32 and data.labels.dtype == torch.int64
    assert len(data.labels) == train and len(data.test_labels) == test
    torch.testing.assert_close(data.images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.images.std((0, 2, 3)), torch.ones(shape[0]), atol=1e-4, rtol=0)


def test_digits_need_no_folder():
    data = load("digits", None)
    assert_normalised(data, (1, 8, 8), 1437, 360)
    assert data.test_labels.bincount().min() >= 34


@pytest.mark.parametrize("name, family", [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_idx_files(tmp_path, no_network, name, family):
    write_idx(tmp_path, family)
    data = load(name, tmp_path)
    assert_normalised(data, (1, 28, 28), 40, 20)
    raw = datasets.__dict__[family](tmp_path).data.flatten().double()
    torch.testing.assert_close(data.images.flatten(), ((raw - raw.mean()) / raw.std()).float(), atol=1e-4, rtol=1e-4)


def test_cifar10_files(tmp_path, no_network, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    data = load("cifar10", tmp_path)
    assert_normalised(data, (3, 32, 32), 60, 12)
    pixels = torch.as_tensor(datasets.CIFAR10(tmp_path).data)  # (N, H, W, C)
    red = pixels[..., 0].double()
    torch.testing.assert_close(data.images[:, 0], ((red - red.mean()) / red.std()).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_missing_without_a_network_is_one_line_and_leaves_nothing(tmp_path, no_network, name):
    folder = tmp_path / "some" / "where"
    with pytest.raises(Refusal, match="--data-dir .*where lacks .*no network") as caught:
        load(name, folder)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_downloaded_once(tmp_path, monkeypatch):
    calls = []

    def fetch(dataset):
        calls.append(dataset.root)
        write_idx(tmp_path / "elsewhere", "MNIST")
        (tmp_path / "elsewhere" / "MNIST").rename(dataset.root / "MNIST")

    monkeypatch.setattr(datasets.MNIST, "download", fetch)
    folder = tmp_path / "data"
    for _ in range(2):
        assert len(load("mnist", folder).labels) == 40
    assert len(calls) == 1
    assert [path.name for path in folder.iterdir()] == ["MNIST"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "elsewhere"]


def test_a_broken_file_is_refused_and_kept(tmp_path, no_network):
    write_idx(tmp_path, "MNIST")
    broken = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(Refusal, match="--data-dir .*: cannot read mnist"):
        load("mnist", tmp_path)
    assert broken.stat().st_size == 1000


@pytest.mark.parametrize("shape, inputs", [((1, 8, 8), 200), ((1, 28, 28), 800), ((3, 32, 32), 1250)])
def test_lenet5_fits_every_image_size(shape, inputs):
    model = build(Namespace(model="lenet5", width=7, depth=2), shape)
    assert model.hidden1.in_features == inputs
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_mlp_is_the_papers():
    torch.manual_seed(0)
    model = build(Namespace(model="mlp", width=400, depth=1), (1, 20, 20))
    bound = (2 * 6 / 800) ** 0.5  # Xavier-uniform, gain sqrt(2)
    assert model.hidden1.raw("weight").abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert not model.hidden1.bias.any()
    assert 0 < model.hidden1.theta.min() < 0.02 and 0.98 < model.hidden1.theta.max() <= 1
