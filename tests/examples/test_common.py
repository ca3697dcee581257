"""What the examples share: reading idx files, networks, training, tables."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from examples.common.data import load, read_idx
from examples.common.networks import cnn, mlp
from examples.common.task import markdown
from examples.common.training import Recipe, train


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes, as its format is described."""
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def labels(count: int) -> np.ndarray:
    return (np.arange(count) % 10).astype(np.uint8)


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10


def test_idx_gzipped_or_not(tmp_path: Path) -> None:
    array = images(7)[:, :3, :5]
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "packed.gz"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG and so on", "not an idx file of bytes"),
        (idx(images(2))[:-1], r"1567 bytes for an array of shape \(2,"),
    ],
    ids=["another-format", "cut-short"],
)
def test_idx_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file")


def test_mnist_with_its_training_files(tmp_path: Path) -> None:
    for part, count in (("train", 30), ("t10k", 8)):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images(count))))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels(count)))
    found = load(str(tmp_path))
    assert found.shape == (1, 28, 28)
    assert torch.equal(found.train[0][:, 0], torch.from_numpy(images(30)) / 255)
    assert found.test[1].tolist() == labels(8).tolist()


def test_mnist_test_images_alone_are_parted(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images(8)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels(8)))
    found = load(str(tmp_path))
    assert (found.train[1].tolist(), found.test[1].tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7])


def test_folder_without_mnist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte"):
        load(str(tmp_path))


def test_mlp_has_the_biases_asked_for_at_zero() -> None:
    names = {bias: [n for n, _ in mlp((1, 8, 8), 16, 3, bias=bias).named_parameters()] for bias in ("all", "last")}
    assert sum(name.endswith("bias") for name in names["all"]) == 3
    assert [name for name in names["last"] if name.endswith("bias")] == [names["last"][-1]]
    assert all(not p.any() for n, p in mlp((1, 8, 8), 16, 3).named_parameters() if n.endswith("bias"))


@pytest.mark.parametrize(
    "network", [mlp((1, 8, 8), 16, batch_norm=True), cnn((1, 8, 8), (4, 8)), cnn((1, 8, 8), (4, 8), batch_norm=False)]
)
def test_training_repeats_and_changes_nothing_else(network: torch.nn.Module) -> None:
    before, random = {n: v.clone() for n, v in network.state_dict().items()}, torch.get_rng_state()
    recipe = Recipe("adam", rate=1e-2, steps=7, batch=16)
    first, second = (train(network, data(), recipe, every=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert len(first) == 4  # the start, after 3 and 6 steps, the end
    assert all(torch.equal(a[n], b[n]) for a, b in zip(first, second, strict=True) for n in a)
    assert all(torch.equal(first[0][name], before[name]) for name in before)
    other = train(network, data(), Recipe("adam", rate=1e-2, steps=7, batch=16, seed=1))
    assert any(not torch.equal(first[-1][name], other[-1][name]) for name in before)


def test_training_learns() -> None:
    network = mlp((1, 8, 8), 32)
    network.load_state_dict(train(network, data(), Recipe("sgd", rate=0.1, steps=300))[-1])
    assert (network(data()[0]).argmax(dim=1) == data()[1]).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (1, 11, 17)], ids=str)
@pytest.mark.parametrize("network", [mlp, cnn])
def test_networks_take_images_of_their_shape(network: Callable[..., torch.nn.Module], shape: tuple[int, ...]) -> None:
    assert network(shape)(torch.zeros(2, *shape)).shape == (2, 10)


def test_unknown_optimiser() -> None:
    with pytest.raises(ValueError, match="optimiser 'lbfgs' is not one of 'sgd', 'adam'"):
        train(mlp((1, 8, 8)), data(), Recipe("lbfgs"))


def test_markdown_columns_are_aligned() -> None:
    frame = pd.DataFrame({"loss": [0.123456, 2.0], "ok": [True, False]}, index=pd.Index(["a", "longer"], name="run"))
    assert markdown(frame).splitlines() == [
        "| run    | loss  | ok  |",
        "| ------ | ----- | --- |",
        "| a      | 0.123 | yes |",
        "| longer | 2     | no  |",
    ]
