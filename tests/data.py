"""The data that the test models eat: 13 examples in batches of 5, 5 and 3, every layout that a loader may yield."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Batch = Any
"""`(inputs, targets)`, or a dict whose `labels` are the targets."""

BATCH_SIZES = (5, 5, 3)
"""The last batch is short, so that a mean of batch means is not the mean over the examples."""

CLASSES = 4


def cut(*columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Cuts columns of 13 examples into batches of 5, 5 and 3."""
    return list(zip(*(column.split(list(BATCH_SIZES)) for column in columns), strict=True))


def generator() -> torch.Generator:
    """The data's own generator."""
    return torch.Generator().manual_seed(7)


def normal(*shape: int) -> Callable[[], list[Batch]]:
    """Batches of N(0, 1) inputs of `shape` per example and class labels."""

    def data() -> list[Batch]:
        g, n = generator(), sum(BATCH_SIZES)
        return cut(torch.randn(n, *shape, generator=g), torch.randperm(n, generator=g) % CLASSES)

    return data


def regression(*shape: int, outputs: int) -> Callable[[], list[Batch]]:
    """Batches of N(0, 1) inputs and N(0, 1) targets."""

    def data() -> list[Batch]:
        g, n = generator(), sum(BATCH_SIZES)
        return cut(torch.randn(n, *shape, generator=g), torch.randn(n, outputs, generator=g))

    return data


def token_batches(length: int, vocabulary: int = 17) -> list[Batch]:
    """Batches of token ids and class labels."""
    g, n = generator(), sum(BATCH_SIZES)
    return cut(torch.randint(0, vocabulary, (n, length), generator=g), torch.randperm(n, generator=g) % CLASSES)


def multi_label() -> list[Batch]:
    """Batches of vectors and CLASSES yes-or-no labels each."""
    g, n = generator(), sum(BATCH_SIZES)
    return cut(torch.randn(n, 6, generator=g), torch.randint(0, 2, (n, CLASSES), generator=g).float())


def segmentation() -> list[Batch]:
    """Images and a class per pixel, a quarter of them -100 (ignored)."""
    g, n = generator(), sum(BATCH_SIZES)
    targets = torch.randint(0, CLASSES, (n, 7, 6), generator=g)
    targets[torch.rand(targets.shape, generator=g) < 0.25] = -100
    return cut(torch.randn(n, 3, 7, 6, generator=g), targets)


def two_inputs() -> list[Batch]:
    """`((left, right), targets)` batches."""
    g, n = generator(), sum(BATCH_SIZES)
    columns = (torch.randn(n, 6, generator=g), torch.randn(n, 3, generator=g), torch.randperm(n, generator=g) % CLASSES)
    return [((left, right), targets) for left, right, targets in cut(*columns)]


def two_named_inputs() -> list[Batch]:
    """The same as dicts."""
    return [{"right": right, "left": left, "labels": targets} for (left, right), targets in two_inputs()]


def language() -> list[Batch]:
    """Dicts of token ids, right-padded attention mask and labels with -100 where padded."""
    batches: list[Batch] = []
    for tokens, _ in token_batches(9):
        mask = torch.ones_like(tokens)
        mask[0, 6:] = 0
        batches.append({"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)})
    return batches


def sentences() -> list[Batch]:
    """Dicts of token ids, attention mask and one class per sentence."""
    batches: list[Batch] = []
    for tokens, targets in token_batches(9):
        mask = torch.ones_like(tokens)
        mask[-1, 5:] = 0
        batches.append({"input_ids": tokens, "attention_mask": mask, "labels": targets})
    return batches


def pictures() -> list[Batch]:
    """Dicts of pixel values and labels."""
    return [{"pixel_values": x, "labels": y} for x, y in normal(3, 8, 8)()]
