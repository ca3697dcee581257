"""Fifteen small real models, a sweep and a plain loop in turn: `python -m benchmarks.real_models`.

It wants timm and transformers, which the environment of `make zoo` has.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mli_fast
from benchmarks import machine
from benchmarks.models import Cnn
from benchmarks.zoo import torchvision_names
from benchmarks.zoo.specimen import perturbed

ALPHAS = np.linspace(0, 1, 10)
ROWS, SIDE, TOKENS, WORDS, CLASSES = 16, 96, 64, 1000, 10
TOLERANCE = 1e-5  # relative, of the losses against the plain loop's in fp64; else twice the plain loop's own error
RESULTS = Path(__file__).parent / "results"
WIDTH = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
Batch = Any


class Encoder(nn.Module):
    """`nn.TransformerEncoder` of width 128 and four layers over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
        self.words, self.encoder = nn.Embedding(WORDS, 128), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T] -> [B, CLASSES]
        return self.head(self.encoder(self.words(tokens)).mean(1))


class Recurrent(nn.Module):
    """An LSTM of width 128 and two layers over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, 128), nn.LSTM(128, 128, 2, batch_first=True)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:  # [B, T] -> [B, CLASSES]
        return self.head(self.lstm(self.words(tokens))[0][:, -1])


class UNet(nn.Module):
    """Two levels down, two up; the classes of its pixels averaged."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([_double(3, width), _double(width, 2 * width)])
        self.middle = _double(2 * width, 4 * width)
        self.rise = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.up = nn.ModuleList([_double(4 * width, 2 * width), _double(2 * width, width)])
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, CLASSES]
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([kept.pop(), rise(x)], 1))
        return self.head(x).mean((2, 3))


def _double(fan_in: int, fan_out: int) -> nn.Sequential:
    def one(a: int) -> list[nn.Module]:
        return [nn.Conv2d(a, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]

    return nn.Sequential(*one(fan_in), *one(fan_out))


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return make


def _hugging(kind: str, task: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config = transformers.CONFIG_MAPPING[kind](vocab_size=WORDS, use_cache=False, **options)
        return getattr(transformers, f"AutoModelFor{task}").from_config(config)

    return make


def _images(side: int) -> Callable[[int], Batch]:
    return lambda seed: (_noise(seed, ROWS, 3, side, side), _whole(seed, CLASSES, ROWS))


def _tokens(seed: int) -> Batch:
    return _whole(seed, WORDS, ROWS, TOKENS), _whole(seed, CLASSES, ROWS)


def _text(seed: int) -> Batch:
    tokens = _whole(seed, WORDS, ROWS, TOKENS)
    return {"input_ids": tokens, "labels": tokens}


def _sentences(seed: int) -> Batch:
    tokens, labels = _tokens(seed)
    return {"input_ids": tokens, "labels": labels}


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(seed: int, below: int, *shape: int) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


LANGUAGE = "causal_lm"
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch], str]] = {
    "small conv net": (lambda: Cnn(3), _images(32), "cross_entropy"),
    "TransformerEncoder d128 L4": (Encoder, _tokens, "cross_entropy"),
    "mobilenetv3_small": (_timm("mobilenetv3_small_100"), _images(SIDE), "cross_entropy"),
    "regnety_002": (_timm("regnety_002"), _images(SIDE), "cross_entropy"),
    "gpt2 d128 L4": (_hugging("gpt2", "CausalLM", n_embd=128, n_layer=4, n_head=4), _text, LANGUAGE),
    "efficientnet_b0": (_timm("efficientnet_b0"), _images(SIDE), "cross_entropy"),
    "bert d128 L4": (
        _hugging("bert", "SequenceClassification", num_labels=CLASSES, **WIDTH), _sentences, "cross_entropy"),
    "LSTM d128 L2": (Recurrent, _tokens, "cross_entropy"),
    "mixtral d128 L4": (
        _hugging("mixtral", "CausalLM", num_local_experts=4, num_key_value_heads=2, **WIDTH), _text, LANGUAGE),
    "llama d128 L4": (_hugging("llama", "CausalLM", num_key_value_heads=2, **WIDTH), _text, LANGUAGE),
    "vit_tiny": (_timm("vit_tiny_patch16_224", img_size=SIDE), _images(SIDE), "cross_entropy"),
    "U-Net": (UNet, _images(SIDE), "cross_entropy"),
    "convnext_atto": (_timm("convnext_atto"), _images(SIDE), "cross_entropy"),
    "swin_tiny": (_timm("swin_tiny_patch4_window7_224", img_size=SIDE), _images(SIDE), "cross_entropy"),
    "resnet18": (_timm("resnet18"), _images(SIDE), "cross_entropy"),
}  # fmt: skip


def plain_loop(
    model: nn.Module, ends: list[Mapping[str, Tensor]], batches: Iterable[Batch], criterion: str, dtype: torch.dtype
) -> np.ndarray:
    """What a user writes: the mean loss at every alpha, [P]."""
    losses = []
    with torch.no_grad():
        for alpha in ALPHAS.tolist():
            model.load_state_dict(
                {k: (1 - alpha) * a.to(dtype) + alpha * ends[1][k].to(dtype) if a.is_floating_point() else ends[1][k]
                 for k, a in ends[0].items()}
            )  # fmt: skip
            total = count = 0.0
            for batch in batches:
                outputs, targets = _called(model, batch)
                if criterion == LANGUAGE:
                    outputs, targets = outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
                total += float(F.cross_entropy(outputs, targets, reduction="sum"))
                count += len(targets)
            losses.append(total / count)
    return np.array(losses)


def _called(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        return model(input_ids=batch["input_ids"]).logits, batch["labels"]
    return model(batch[0]), batch[1]


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _wide(item) for key, item in value.items()}
    return tuple(map(_wide, value))


def measured(name: str, count: int, threads: int, rounds: int) -> dict[str, Any]:
    """One model, `count` batches: values checked, then a sweep and a plain loop in turn."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make, draw, criterion = MODELS[name]
    model = make().eval()
    ends: list[Mapping[str, Tensor]] = [perturbed(model, seed) for seed in (1, 2)]
    batches = [draw(seed) for seed in range(count)]
    own = copy.deepcopy(model)

    def ours() -> Any:
        return mli_fast.sweep(model, *ends, batches, ALPHAS, criterion=criterion, metrics=(), progress=False)

    def theirs() -> np.ndarray:
        return plain_loop(own, ends, batches, criterion, torch.float32)

    found, expected = ours(), theirs()
    exact = expected
    if count == 1:  # the batches are alike: one is looked at in fp64
        with contextlib.suppress(RuntimeError):  # grouped products of experts are for fp32 and less
            wide = [_wide(batch) for batch in batches]
            exact = plain_loop(copy.deepcopy(model).double(), ends, wide, criterion, torch.float64)
    error, off = (float(np.max(np.abs(v - exact) / np.abs(exact))) for v in (found.loss, expected))
    times: dict[str, list[float]] = {"sweep": [], "loop": []}
    for turn in range(rounds):
        for kind, run in (("sweep", ours), ("loop", theirs)) if turn % 2 == 0 else (("loop", theirs), ("sweep", ours)):
            now = time.perf_counter()
            run()
            times[kind].append(time.perf_counter() - now)
    sweep, loop = median(times["sweep"]), median(times["loop"])
    return {
        "model": name,
        "batches": count,
        "threads": threads,
        "engine": found.provenance["engine"],
        "reason": found.provenance["engine_reason"],
        "kernels": found.provenance["kernels"],
        "error": error,
        "plain_error": off,
        "agrees": error <= max(TOLERANCE, 2 * off),
        "sweep_s": sweep,
        "loop_s": loop,
        "ratio": sweep / loop,
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="comma-separated names of models")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "real_models.json")
    chosen = parser.parse_args()
    torchvision_names.importable()
    names = chosen.only.split(",") if chosen.only else list(MODELS)
    rows: list[dict[str, Any]] = []
    if chosen.out.exists():  # the other lines stay
        again = names, chosen.batches, chosen.threads
        for row in json.loads(chosen.out.read_text())["rows"]:
            if not all(row[key] in new for key, new in zip(("model", "batches", "threads"), again, strict=True)):
                rows.append(row)
    document = {"machine_info": machine.describe(), "versions": machine.versions(), "rows": rows,
                "datetime": time.strftime("%Y-%m-%dT%H:%M:%S"), "alphas": len(ALPHAS), "batch_size": ROWS}  # fmt: skip
    print("| model | batches | threads | engine | off | sweep | plain loop | sweep / plain loop |\n" + "|---" * 8 + "|")
    for count in chosen.batches:
        for threads in chosen.threads:
            for name in names:
                row = measured(name, count, threads, chosen.rounds)
                rows.append(row)
                off = f"{row['error']:.1e}" + ("" if row["agrees"] else " **wrong**")
                cells = [name, str(count), str(threads), row["engine"], off, f"{1e3 * row['sweep_s']:,.0f} ms",
                         f"{1e3 * row['loop_s']:,.0f} ms", f"{row['ratio']:.2f}"]  # fmt: skip
                print("| " + " | ".join(cells) + " |", flush=True)
                chosen.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
