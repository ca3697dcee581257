"""A network whose forward is given, and the plain loop that its sweeps are held against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHAS = [0.0, 0.3, 0.7, 1.0]
D = 5
Form = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """The layers of the forms below, and the ways in which models reach parameters past their attributes."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.stem, self.f1, self.f2, self.out = (nn.Linear(D, D) for _ in range(4))
        self.conv, self.conv2, self.bn = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.stacked = nn.Parameter(torch.randn(4, D, D))
        self.square = nn.Parameter(torch.eye(D) + 0.1 * torch.randn(D, D))
        self.register_buffer("flags", torch.tensor([1.0, -1.0, 1.0, -1.0]))
        self.register_buffer("scratch", torch.zeros(4, D), persistent=False)
        self.ws = [self.f1.weight]
        self.call = lambda x: self.f1(x)
        self.bound = self.f2.forward
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def ends(form: Form, constant: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(3)
    a, b = Net(form).state_dict(), Net(form).state_dict()
    for k in b:
        if constant is not None and k.startswith(constant):
            b[k] = a[k].clone()
        if "running_var" in k:
            b[k] = b[k] + 0.5
    return a, b


def batches(*lengths: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of these lengths; three of four examples by default."""
    torch.manual_seed(4)
    return [(torch.randn(n, D), torch.arange(n) % 3) for n in lengths or (4, 4, 4)]


def plain_losses(
    net: Net, theta_0: dict[str, Tensor], theta_T: dict[str, Tensor], lengths: tuple[int, ...] = ()
) -> np.ndarray:
    """A loop that loads each point afresh for each batch, which is a copy: a program may write to either."""
    found, data = [], batches(*lengths)
    for alpha in ALPHAS:
        total = 0.0
        for x, y in data:
            mixed = {
                k: torch.lerp(v.double(), theta_T[k].double(), alpha).to(v.dtype) if v.is_floating_point() else v
                for k, v in theta_0.items()
            }
            net.load_state_dict(mixed)
            net.eval()
            with torch.no_grad():
                total += float(F.cross_entropy(net(x.clone()).float(), y, reduction="sum"))
        found.append(total / sum(len(y) for _, y in data))
    return np.array(found)


def simple(net: Net, x: Tensor) -> Tensor:
    return net.out(torch.sigmoid(net.stem(x)))
