"""A small model of every family of timm, at random weights and the smallest input it takes."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import torch

from benchmarks.zoo.specimen import Entry, NoSpecimen, Specimen

SIZES = (64, 96, 128, 160, 224, 256)
MOST = 60_000_000  # parameters
SMALL = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "050",
    "035",
    "zepto",
    "xxs",
    "xx_small",
    "tiny",
    "_xs",
    "_s0",
    "_t0",
)
MORE = [
    "mobilenetv2_050", "resnet26d", "efficientnet_lite0", "legacy_seresnet18", "mnasnet_small", "resnext26ts",
    "vit_tiny_r_s16_p8_224", "fbnetc_100", "spnasnet_100", "seresnet18", "ecaresnet26t", "mixnet_s", "tinynet_e",
    "mobilenetv4_conv_small_050", "cs3darknet_focus_s", "hardcorenas_a", "semnasnet_075", "ghostnetv2_100",
    "lcnet_050", "resnetblur18", "skresnet18", "gernet_s", "repvgg_a0", "convnextv2_atto", "resnet10t",
]  # fmt: skip


def entries() -> Iterator[Entry]:
    """One per module that defines models, then some more."""
    import timm
    from timm.models import model_entrypoint

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(model_entrypoint(name).__module__.rsplit(".", 1)[-1], []).append(name)
    for family, names in families.items():
        yield Entry("timm", family, functools.partial(_smallest, tuple(names)))
    for name in MORE:
        yield Entry("timm", name, functools.partial(_smallest, (name,)))


def _smallest(names: tuple[str, ...]) -> Specimen:
    import timm

    reasons = []
    for name in sorted(names, key=_size)[:6]:
        for size in SIZES:
            try:
                return _specimen(timm, name, size)
            except Exception as error:  # noqa: BLE001 - another size or model will do
                reasons.append(f"{name} at {size}: {error}")
    raise NoSpecimen("; ".join(reasons[-2:])[:300])


def _size(name: str) -> tuple[int, int, str]:
    """A guess from the name, so that not all have to be built."""
    small = next((i for i, word in enumerate(SMALL) if word in name), len(SMALL))
    large = sum(word in name for word in ("base", "large", "huge", "giant", "_xl", "so400m", "medium"))
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return large, small, f"{max(numbers, default=0):06d}{name}"


def _specimen(timm: object, name: str, size: int) -> Specimen:
    torch.manual_seed(0)
    options = {"num_classes": 10, "pretrained": False}
    with torch.device("meta"):  # counted before memory is spent
        try:
            count = sum(p.numel() for p in timm.create_model(name, **options).parameters())
        except Exception:  # noqa: BLE001 - not every model can be made there
            count = 0
    if count > MOST:
        raise NoSpecimen(f"{count:,} parameters")
    try:
        model = timm.create_model(name, img_size=size, **options)
    except TypeError:
        model = timm.create_model(name, **options)
    model.eval()
    batches = [(torch.randn(n, 3, size, size), torch.randint(0, 10, (n,))) for n in (3, 2)]
    with torch.no_grad():
        outputs = model(batches[0][0])
    if outputs.shape != (3, 10):
        raise NoSpecimen(f"outputs {tuple(outputs.shape)}")
    return Specimen(model, batches, "cross_entropy")
