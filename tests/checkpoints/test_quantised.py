"""Quantised checkpoints are refused, naming the layer and how to dequantise it."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mli_fast.checkpoints import gather
from tests.checkpoints.cases import State

BYTES, INTS, BIAS = torch.zeros(8, 1, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int32), torch.zeros(2)
NF4 = {"weight": BYTES, "weight.absmax": BIAS, "weight.quant_map": torch.ones(16), "bias": BIAS}
CASES: dict[str, tuple[State, str, str]] = {
    "nf4": ({**NF4, "weight.quant_state.bitsandbytes__nf4": BYTES}, "bitsandbytes", "dequantize_4bit"),
    "nf4-keys": ({"weight": torch.zeros(2, 4), "bias": BIAS, "weight.absmax": BIAS}, "weight.absmax", "dequantize"),
    "int8": ({"weight": torch.zeros(2, 4).char(), "SCB": BIAS, "bias": BIAS}, "int8", "dequantize()"),
    "gptq": ({"qweight": INTS, "qzeros": INTS, "scales": BIAS, "g_idx": INTS, "bias": BIAS}, "GPTQ", "dequantize()"),
    "awq": ({"qweight": INTS, "qzeros": INTS, "scales": BIAS, "bias": BIAS}, "AWQ", "original weights"),
    "fp8": ({"weight": torch.zeros(2, 4), "weight_scale_inv": BIAS, "bias": BIAS}, "scales", "multiply each weight"),
    "packed": ({"weight": BYTES, "bias": BIAS}, "packed into uint8", "dequantize()"),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prefix", ["fc.", "module.fc."])
def test_quantised_keys_name_the_layer_and_the_way_out(case: str, prefix: str) -> None:
    state, how, way = CASES[case]
    words = f"theta_T: the layer {prefix[:-1]!r} is quantised"
    with pytest.raises(ValueError, match=f"{re.escape(words)}.*{re.escape(how)}.*{re.escape(way)}"):
        gather(Net(), [Net(), {prefix + key: value for key, value in state.items()}])


@pytest.mark.parametrize("about", [{"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True}])
def test_a_folder_whose_configuration_says_that_it_is_quantised(about: dict[str, object], tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 4), "fc.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": about}))
    with pytest.raises(
        ValueError, match=r"its config\.json says that its weights are quantised \((gptq|quantization_c)"
    ):
        gather(Net(), [Net(), tmp_path])


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", '{"quantization_config": null}', "[" * 100_000])
def test_other_configurations_do_not_matter(text: str, tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 4), "fc.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    assert gather(Net(), [Net(), tmp_path]).count == 2
