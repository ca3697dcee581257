"""Makes torchvision importable, which timm and transformers import, beside any build of PyTorch."""

from __future__ import annotations

import importlib

import torch


def importable() -> None:
    """A torchvision built for another kind of PyTorch loads without its operators, once those it asks for have a name.

    No model here uses them.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        _KEPT.append(library)
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


_KEPT: list[object] = []  # a library's names go with it
