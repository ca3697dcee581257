"""Random small networks, written as nobody would: in place, through views, into given memory, by branches and numbers.

`python -m tests.programs 10000 [first seed]` draws that many and holds every mode against plain PyTorch.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast.engine.modes import forced

ALPHAS = (0.0, 0.3, 0.7, 1.0)
B, D = 4, 6
Step = tuple[str, tuple[int, ...]]  # an operation and its numbers: positions in the pool, layers, sizes


class Drawn(nn.Module):
    """A network whose forward pass is a list of steps over a pool of values.

    Args:
        image: whether it takes [B, 2, 4, 4], not [B, D].
    """

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.image = image
        self.lin = nn.ModuleList(nn.Linear(D, D, bias=i != 1) for i in range(4))
        self.stacked = nn.Parameter(torch.randn(3, D, D) / D**0.5)
        self.vector = nn.Parameter(torch.randn(D))
        self.ln, self.bn = nn.LayerNorm(D), nn.BatchNorm1d(D)
        self.conv = nn.ModuleList(nn.Conv2d(2, 2, k, padding=k // 2, bias=k == 3) for k in (3, 1, 3))
        self.cbn = nn.BatchNorm2d(2)
        self.rnn = nn.GRU(D, D, batch_first=True)
        self.head = nn.LazyLinear(3)
        with torch.no_grad():
            self.views = [self.lin[0].weight, self.lin[2].weight.t(), self.stacked[1]]
        self.register_buffer("flags", torch.tensor([1.0, -1.0, 1.0]))
        self.array = np.zeros(D, np.float32)
        self.steps: list[Step] = []

    def forward(self, x: Tensor) -> Tensor:
        pool = [x]
        for name, numbers in self.steps:
            OPERATIONS[name](self, pool, *numbers)
        flat = [t.reshape(B, -1) for t in pool[-3:] if t.dim() and t.shape[0] == B]
        return self.head(torch.cat([*flat, pool[0].reshape(B, -1)], 1))


def pick(pool: Sequence[Tensor], i: int) -> Tensor:
    """A value of the pool; the newest are 0, 1, 2, ..."""
    return pool[-1 - i % len(pool)]


def rows(t: Tensor) -> Tensor:
    """A value as [B, D], whatever its shape."""
    if t.dim() == 2 and t.shape[-1] == D:
        return t
    flat = t.reshape(-1)
    return flat.repeat(-(-B * D // max(flat.numel(), 1)))[: B * D].reshape(B, D)


def unary(f: Callable[[Tensor], Any]) -> Callable[..., None]:
    """A step that adds f of one value."""

    def step(net: Drawn, pool: list[Tensor], i: int, *_: int) -> None:
        out = f(pick(pool, i))
        pool.extend(out if isinstance(out, (tuple, list)) else [out])

    return step


def binary(f: Callable[[Tensor, Tensor], Any]) -> Callable[..., None]:
    """A step that adds f of two values."""

    def step(net: Drawn, pool: list[Tensor], i: int, j: int, *_: int) -> None:
        out = f(pick(pool, i), pick(pool, j))
        pool.extend(out if isinstance(out, (tuple, list)) else [out])

    return step


def layer(f: Callable[[Drawn, Tensor, int], Tensor]) -> Callable[..., None]:
    """A step that adds what a layer makes of one value."""

    def step(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
        pool.append(f(net, pick(pool, i), k))

    return step


def effect(f: Callable[..., Any]) -> Callable[..., None]:
    """A step that changes something of the pool."""

    def step(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
        f(pick(pool, i), pick(pool, j), k)

    return step


def into(f: Callable[..., Any]) -> Callable[..., None]:
    """A step that writes f of two values into the memory of a third."""

    def step(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
        f(pick(pool, i), pick(pool, j), out=pick(pool, k))

    return step


def fresh_out(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    out = torch.zeros_like(pick(pool, i))
    out += net.lin[k % 4](rows(pick(pool, j))) if out.shape == (B, D) else 1.0
    pool.append(out)


def residual(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    h = net.lin[k % 4](rows(pick(pool, i)))
    h += net.lin[j % 4](F.relu(net.lin[(j + 1) % 4](h)))
    pool.append(h)


def write_part(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    t = pick(pool, i)
    t[..., k % t.shape[-1]] = 0 if j % 2 else pick(pool, j).flatten()[0]


def write_mask(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    t = pick(pool, i)
    t[t > 0.5] = 0.1 * k


def gates(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    x = rows(pick(pool, i))
    a, b, c = [x @ net.stacked[n] for n in range(3)]
    pool.append(torch.sigmoid(a) * torch.tanh(b) + c)


def flag(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    for n in range(3):
        if net.flags[(n + k) % 3].item() > 0:
            pool.append(net.lin[n](rows(pick(pool, i))) * (n + 1))


def branch(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    t = pick(pool, i)
    pool.append(t * 2 if t.mean().item() > 0.1 * (k - 2) else t - 1)


def guard(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    if torch.isnan(pick(pool, i)).any():
        raise ValueError("not a number")


def chosen(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    t = pick(pool, i)
    kept = t[t.reshape(t.shape[0], -1)[:, 0] > 0]
    pool.append(t + kept.sum(0) * (1 + kept.shape[0]))


def held(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    pool.append(rows(pick(pool, i)) @ net.views[k % 3])


def signs(net: Drawn, t: Tensor, k: int) -> Tensor:
    net.array[:] = (rows(t).mean(0) > 0.1 * k).tolist()
    return rows(t) + (torch.from_numpy(net.array) if k % 2 else torch.tensor(net.array))


def inferred(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t @ t.transpose(0, -1) if t.dim() == 2 else t + 1


def scanned(net: Drawn, pool: list[Tensor], i: int, j: int, k: int) -> None:
    pool.append(net.rnn(rows(pick(pool, i))[:, None].expand(B, 2, D))[0][:, -1])


def image_of(t: Tensor) -> Tensor:
    if t.dim() == 4 and t.shape[1] == 2:
        return t
    flat = t.reshape(-1)
    return flat.repeat(-(-B * 32 // flat.numel()))[: B * 32].reshape(B, 2, 4, 4)


OPERATIONS: dict[str, Callable[..., None]] = {
    "linear": layer(lambda net, t, k: net.lin[k % 4](rows(t))),
    "linear of the last": layer(lambda net, t, k: net.lin[k % 4](t)),
    "functional linear": layer(lambda net, t, k: F.linear(rows(t), net.lin[k % 4].weight, net.vector)),
    "by a transpose": layer(lambda net, t, k: rows(t) @ net.lin[k % 4].weight),
    "by a part": layer(lambda net, t, k: F.linear(rows(t), net.lin[k % 4].weight[: k % 3 + 1])),
    "by a normed weight": layer(lambda net, t, k: rows(t) @ (net.lin[k % 4].weight / net.lin[k % 4].weight.norm())),
    "by a vector": layer(lambda net, t, k: rows(t) @ net.vector),
    "addmm": layer(lambda net, t, k: torch.addmm(rows(t), rows(t), net.lin[k % 4].weight, beta=0.5, alpha=2)),
    "einsum": layer(lambda net, t, k: torch.einsum("bd,kde->bke", rows(t), net.stacked)),
    "layer norm": layer(lambda net, t, k: net.ln(rows(t))),
    "batch norm": layer(lambda net, t, k: net.bn(rows(t))),
    "conv": layer(lambda net, t, k: net.conv[k % 3](image_of(t))),
    "conv, batch norm": layer(lambda net, t, k: net.cbn(net.conv[k % 3](image_of(t)))),
    "image norm": layer(lambda net, t, k: net.cbn(image_of(t))),
    "pool": layer(lambda net, t, k: F.max_pool2d(image_of(t), 2)),
    "conv, view": layer(lambda net, t, k: net.conv[k % 3](image_of(t)).view(B, -1)),
    "conv, strides": layer(lambda net, t, k: (y := net.conv[k % 3](image_of(t))) * float(y.stride(1))),
    "attention": layer(lambda net, t, k: F.scaled_dot_product_attention(*[rows(t)[None]] * 3)[0]),
    "gates": gates,
    "held views": held,
    "recurrent": scanned,
    "residual": residual,
    "flags": flag,
    "branch": branch,
    "guard": guard,
    "mask": chosen,
    "zeros plus": fresh_out,
    "write part": write_part,
    "write mask": write_mask,
    "relu": unary(F.relu),
    "gelu": unary(F.gelu),
    "silu": unary(F.silu),
    "tanh": unary(torch.tanh),
    "square": unary(lambda t: (t.clamp(-2, 2)) ** 2),
    "softmax": unary(lambda t: t.softmax(-1)),
    "cumsum": unary(lambda t: t.cumsum(-1) / t.shape[-1]),
    "sort": unary(lambda t: t.sort(-1).values),
    "mean": unary(lambda t: t - t.mean(0, keepdim=True)),
    "clone": unary(Tensor.clone),
    "detach": unary(Tensor.detach),
    "contiguous": unary(Tensor.contiguous),
    "transpose": unary(lambda t: t.transpose(0, -1)),
    "view": unary(lambda t: t.view(-1, 2)),
    "view 2": unary(lambda t: t.view(t.shape[0], -1)),
    "reshape": unary(lambda t: t.reshape(2, -1)),
    "flatten": unary(lambda t: t.flatten()),
    "chunk": unary(lambda t: t.chunk(2, -1)),
    "split": unary(lambda t: t.split(2, -1)),
    "unbind": unary(lambda t: t.unbind(0)),
    "narrow": unary(lambda t: t.narrow(-1, 0, max(1, t.shape[-1] // 2))),
    "stride": unary(lambda t: t[..., ::2]),
    "row": unary(lambda t: t[0]),
    "expand": unary(lambda t: t[:1].expand_as(t)),
    "unsqueeze": unary(lambda t: t.unsqueeze(-1)),
    "flip": unary(lambda t: t.flip(0)),
    "diagonal": unary(lambda t: t.diagonal()),
    "as_strided": unary(lambda t: t.as_strided((2, 2), (1, 2))),
    "index": unary(lambda t: t[torch.tensor([1, 0, 1, 0])]),
    "index by a list": unary(lambda t: t[..., [0, -1]]),
    "index by elements": unary(lambda t: t[..., [t.reshape(-1)[:2].argmax() % t.shape[-1], 0]]),
    "of elements": unary(lambda t: t * torch.FloatTensor([t.mean() > 0, 1.0]).sum()),
    "new of elements": unary(lambda t: t * t.new_tensor([t.mean() > 0, 1.0]).sum()),
    "array": layer(signs),
    "inference": unary(inferred),
    "roll": unary(lambda t: t.roll(1, 0)),
    "add": binary(torch.add),
    "sub": binary(lambda a, b: torch.sub(a, b, alpha=0.5)),
    "mul": binary(torch.mul),
    "max": binary(torch.maximum),
    "where": binary(lambda a, b: torch.where(a > 0, a, b)),
    "cat": binary(lambda a, b: torch.cat([a, b], 0)),
    "stack": binary(lambda a, b: torch.stack([a, b]).sum(0)),
    "lerp": binary(lambda a, b: a.lerp(b, 0.3)),
    "matmul": binary(lambda a, b: a @ b.transpose(0, -1) / D),
    "relu_": effect(lambda a, b, k: F.relu_(a)),
    "relu inplace": effect(lambda a, b, k: F.relu(a, inplace=True)),
    "sigmoid_": effect(lambda a, b, k: a.sigmoid_()),
    "mul_": effect(lambda a, b, k: a.mul_(0.5 + 0.2 * k)),
    "add_ number": effect(lambda a, b, k: a.add_(0.1 * k)),
    "clamp_": effect(lambda a, b, k: a.clamp_(min=-0.3 * k)),
    "add_": effect(lambda a, b, k: a.add_(b)),
    "sub_": effect(lambda a, b, k: a.sub_(b, alpha=0.3)),
    "mul_ by": effect(lambda a, b, k: a.mul_(b)),
    "copy_": effect(lambda a, b, k: a.copy_(b)),
    "zero_": effect(lambda a, b, k: a[:1].zero_()),
    "masked_fill_": effect(lambda a, b, k: a.masked_fill_(b > 0, 0.2)),
    "addcmul_": effect(lambda a, b, k: a.addcmul_(a, b, value=0.2)),
    "part of a chunk": effect(lambda a, b, k: a.chunk(2, -1)[k % 2].mul_(0.5)),
    "index_add_": effect(lambda a, b, k: a.index_add_(0, torch.tensor([0]), b[:1])),
    "transposed in place": effect(lambda a, b, k: a.t().add_(0.2)),
    "swap": effect(lambda a, b, k: a.flip(0).add_(b)),
    "data": effect(lambda a, b, k: a.data.mul_(0.9)),
    "add into": into(torch.add),
    "mul into": into(torch.mul),
    "max into": into(torch.maximum),
    "aten add_": effect(lambda a, b, k: torch.ops.aten.add_.Tensor(a, b)),
}

REFUSED = frozenset(
    {"index by elements", "of elements", "new of elements", "array", "inference"}
)  # what no record holds


@dataclass
class Case:
    """A drawn network, its ends and its data."""

    net: Drawn
    theta_0: dict[str, Tensor]
    theta_T: dict[str, Tensor]
    batches: list[tuple[Tensor, Tensor]]


def drawn(seed: int) -> Case:
    """A network of this seed that runs, and whose output is finite and of moderate size."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    net = Drawn(choose.random() < 0.3).eval()
    shape = (B, 2, 4, 4) if net.image else (B, D)
    x = torch.randn(shape)
    wanted, names = choose.randint(3, 12), list(OPERATIONS)
    with torch.no_grad():
        net(x.clone())
        while len(net.steps) < wanted:
            step = choose.choice(names), (choose.randint(0, 5), choose.randint(0, 5), choose.randint(0, 5))
            net.steps.append(step)
            if not _runs(net, x):
                net.steps.pop()
        net.head = nn.LazyLinear(3)
        net(x.clone())
    states = []
    for _ in range(2):
        values = {k: v.clone() for k, v in net.state_dict().items()}
        for k, v in values.items():
            if v.is_floating_point() and k != "flags":
                values[k] = v + 0.4 * torch.rand(v.shape) if "running" in k else v + 0.3 * torch.randn(v.shape)
        states.append(values)
    for k in states[0]:
        if choose.random() < 0.25:
            states[1][k] = states[0][k].clone()
    batches = [(torch.randn(shape), torch.randn(B, 3)) for _ in range(choose.randint(1, 3))]
    return Case(net, states[0], states[1], batches)


def _runs(net: Drawn, x: Tensor) -> bool:
    net.head = nn.LazyLinear(3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = net(x.clone())
    except Exception:  # noqa: BLE001 - PyTorch refuses this step here: another one is drawn
        return False
    return bool(out.isfinite().all()) and float(out.abs().max()) < 1e3


def exact_losses(case: Case) -> np.ndarray | None:
    """Losses [P] by a plain loop in float64; None where it fails, or a point takes another way than in float32."""
    net, found = copy.deepcopy(case.net).double(), []
    with torch.no_grad():
        net.views = [net.lin[0].weight, net.lin[2].weight.t(), net.stacked[1]]
    for alpha in ALPHAS:
        net.load_state_dict(
            {k: torch.lerp(v.double(), case.theta_T[k].double(), alpha) for k, v in case.theta_0.items()}
        )
        total = torch.zeros(())
        with torch.no_grad():
            for x, y in case.batches:
                total = total + (net(x.double()) - y.double()).square().mean(1).sum()
        found.append(float(total) / (B * len(case.batches)))
    return np.array(found)


def judged(seed: int) -> tuple[str, str]:
    """("right", engine) or what is wrong, of the network of a seed in every mode."""
    case = drawn(seed)
    try:
        exact = exact_losses(case)
    except Exception as error:  # noqa: BLE001 - the network's own, at another point
        return "fails in PyTorch", str(error)

    def swept() -> mli_fast.SweepResult:
        ends = case.theta_0, case.theta_T
        return mli_fast.sweep(case.net, *ends, case.batches, ALPHAS, criterion="mse", metrics=(), progress=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", mli_fast.engine.running.PlanWarning)
        try:
            with forced("plain"):
                plain = swept()
            with forced("replay"):
                replay = swept()
            ours = swept()
        except Exception as error:  # noqa: BLE001 - what the mode at hand raises is a result
            return "raises", f"{type(error).__name__}: {str(error)[:300]}"
    if not np.array_equal(plain.loss, replay.loss, equal_nan=True):
        return "a replay is not bit for bit plain PyTorch", f"{plain.loss} {replay.loss}"
    if not np.isfinite(exact).all():
        same = np.array_equal(np.isfinite(plain.loss), np.isfinite(ours.loss))
        return ("right" if same else "finite elsewhere"), str(ours.provenance["engine"])
    scale = np.abs(exact).max()
    own, theirs = np.abs(ours.loss - exact).max() / scale, np.abs(plain.loss - exact).max() / scale
    if theirs > 1e-4:
        return "float32 itself is off", f"{theirs:.1e}"
    if own > 10 * theirs + 2e-6:
        return "wrong", f"{own:.1e}, plain {theirs:.1e}; {ours.loss} {exact}"
    engine = str(ours.provenance["engine"])
    names = {name for name, _ in case.net.steps}
    by_rule = not names.isdisjoint(REFUSED) or names >= {"unbind", "index by a list"}
    return "right", "plain by a rule" if engine == "plain" and by_rule else engine


def main() -> None:
    """Judge many seeds and print what was found."""
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    found: Counter[str] = Counter()
    for seed in range(first, first + count):
        verdict, more = judged(seed)
        found[f"{verdict}, {more}" if verdict == "right" else verdict] += 1
        if verdict not in ("right", "float32 itself is off", "fails in PyTorch"):
            print(seed, verdict, more, flush=True)
    print(dict(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
