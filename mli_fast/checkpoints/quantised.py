"""Tells quantised checkpoints, whose values lie in codes and scales, by their keys, and says how to dequantise them."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MOST = 16 << 20  # bytes of a config.json
_MODEL = "load the model with transformers' from_pretrained, call its dequantize() and pass its state_dict()"
_KINDS = {
    r"(.*?)\.?(?:weight|bias)\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)": (
        "in 4 or 8 bits by bitsandbytes",
        f"{_MODEL}, or call bitsandbytes.functional.dequantize_4bit for each weight",
    ),
    r"(.*?)\.?(?:SCB|weight_format)": ("in int8 by bitsandbytes", _MODEL),
    r"(.*?)\.?(?:qweight|qzeros|g_idx)": ("by GPTQ or AWQ", f"{_MODEL}, or take the original weights"),
    r"(.*?)\.?weight_(?:scale|scale_inv|zero_point|packed)": (
        "with scales of its own",
        f"multiply each weight by its scale and drop the scales, or {_MODEL}",
    ),
}


def quantised(state: Mapping[str, Tensor]) -> str | None:
    """Return what says that a state dict is quantised, with the layer and the way out, or None.

    >>> quantised({"fc.qweight": torch.zeros(1, dtype=torch.int32)}).startswith("the layer 'fc' is quantised by GPTQ")
    True
    """
    for key in state:
        for pattern, (how, way) in _KINDS.items():
            if (found := re.fullmatch(pattern, key)) is not None:
                return f"the layer {found[1] or '(root)'!r} is quantised {how} (the key {key!r}); dequantise it: {way}"
    for key, value in state.items():
        if value.dtype == torch.uint8 and key.rpartition(".")[2] == "weight":
            layer = key.rpartition(".")[0] or "(root)"
            return f"the layer {layer!r} is quantised, packed into uint8 (the key {key!r}); dequantise it: {_MODEL}"
    return None


def quantised_folder(folder: Path) -> str | None:
    """Return what the config.json of a folder says of quantised weights, with the way out, or None."""
    place, config = folder / "config.json", None
    with suppress(OSError, ValueError, RecursionError):
        if place.is_file() and place.stat().st_size <= _MOST:
            config = json.loads(place.read_text(encoding="utf-8"))
    about: Any = config.get("quantization_config") if isinstance(config, dict) else None
    if not about:
        return None
    method = about.get("quant_method") if isinstance(about, dict) else None
    return f"its config.json says that its weights are quantised ({method or 'quantization_config'}); {_MODEL}"
