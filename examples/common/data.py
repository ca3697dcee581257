"""Scikit-learn's digits, or MNIST from the idx files in a folder."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mli_fast.demo.training import Data, digits

MOST = {"train": 10_000, "test": 2_500}  # of MNIST, so that every example takes minutes
QUICK = {"train": 300, "test": 200}
MNIST_FILES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Dataset:
    """Images [N, 1, H, W] in 0..1 and labels [N] of ten classes.

    Attributes:
        name: for titles.
        train: what networks are trained on.
        test: what they have not seen.
    """

    name: str
    train: Data
    test: Data

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, (1, H, W)."""
        return tuple(self.train[0].shape[1:])

    def quick(self) -> Dataset:
        """A few images of it, for a look at whether all works."""
        return replace(self, train=first(self.train, QUICK["train"]), test=first(self.test, QUICK["test"]))

    def __str__(self) -> str:
        height, width = self.shape[1:]
        return f"{self.name}, {height} x {width}: {len(self.train[1]):,} to train on, {len(self.test[1]):,} to test on"


def load(where: str) -> Dataset:
    """The data that an example is asked to use.

    Args:
        where: "digits", or a folder with MNIST's idx files, gzipped or not; where those of the training images are
            missing, the test images are parted into three quarters and one.

    Raises:
        ValueError: no such folder or files, or a file that is none of these.
        RuntimeError: scikit-learn, which brings the digits, is not installed.
    """
    if where == "digits":
        return Dataset("digits", **digits())
    folder = Path(where)
    if not folder.is_dir():
        raise ValueError(f"--data {where}: expected 'digits' or a folder with MNIST's idx files")
    if _find(folder, "train-images-idx3-ubyte"):
        return Dataset("MNIST", **{part: first(_mnist(folder, MNIST_FILES[part]), n) for part, n in MOST.items()})
    images, labels = _mnist(folder, MNIST_FILES["test"])
    cut = len(labels) * 3 // 4
    return Dataset("MNIST's test images", train=(images[:cut], labels[:cut]), test=(images[cut:], labels[cut:]))


def first(data: Data, count: int) -> Data:
    """The first examples."""
    return data[0][:count], data[1][:count]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an idx file of bytes: two zeros, the type, the number of dimensions, each size, the values.

    Raises:
        ValueError: another type, or a file of another length.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an idx file of bytes")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">i4")
    if len(content) != start + shape.prod():
        raise ValueError(f"{path}: {len(content) - start} bytes for an array of shape {tuple(shape.tolist())}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _mnist(folder: Path, part: str) -> Data:
    files = [_find(folder, f"{part}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if None in files:
        raise ValueError(f"--data {folder}: {part}-images-idx3-ubyte(.gz) and {part}-labels-idx1-ubyte(.gz) are needed")
    images, labels = (torch.from_numpy(read_idx(file).copy()) for file in files if file is not None)
    return _scaled(images), labels.long()


def _scaled(images: Tensor) -> Tensor:
    return (images.float() / 255)[:, None]


def _find(folder: Path, name: str) -> Path | None:
    """The file of that name, gzipped or not."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
