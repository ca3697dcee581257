"""Each rewrite: done where its condition holds and nowhere else; the values are the same with it and without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mli_fast
from mli_fast.engine import planner
from mli_fast.engine.modes import forced
from mli_fast.evaluation import Evaluation, Job
from mli_fast.options import Options
from mli_fast.program import Program
from mli_fast.rewrites import REWRITES

ALPHAS = [0.0, 0.3, 0.7, 1.0]
Form = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Layers that the forms below put together."""

    def __init__(self, form: Form, image: bool) -> None:
        super().__init__()
        self.form, self.image = form, image
        if image:
            self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.b1 = nn.BatchNorm2d(8)
            self.picture = nn.Parameter(torch.randn(1, 3, 8, 8))
            self.wide, self.wide_norm = nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16)
        else:
            self.f1, self.f2, self.f3 = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.att = nn.MultiheadAttention(16, 2, batch_first=True)
            self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
            self.pre = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True, activation="gelu")
            self.one = nn.Parameter(torch.randn(1))
            self.gates = nn.Parameter(torch.randn(3, 16, 16) / 4)
            self.joined, self.biases = nn.Parameter(torch.randn(16, 48) / 4), nn.Parameter(torch.randn(3, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x).flatten(1)[:, :5]


def network(form: Form, image: bool, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = Net(form, image)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand_like(tensor))
    return net


def batch(image: bool) -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 3, 8, 8) if image else torch.randn(6, 4, 16)
    return x, torch.arange(6) % 5


def program_of(form: Form, image: bool, backend: str = "native") -> Program:
    """The rewritten program of a pass."""
    line = mli_fast.Line(network(form, image, 0), network(form, image, 1))
    given = batch(image)
    with Evaluation(network(form, image, 2), [given], Options(backend=backend)) as evaluation:
        work, planned = evaluation._work(Job(line, line.points(3)), evaluation.anchors(line)), evaluation._planner()
        plan = planned.route(work.points, given, None, None).plan
    assert plan is not None, planned.reasons
    return plan.program


def gelu_by_formula(x: Tensor, factor: float = 0.044715) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + factor * torch.pow(x, 3.0))))


def read_twice(net: Net, x: Tensor) -> Tensor:
    y = net.f1(x)
    return net.f2(F.relu(y)) + y


def written_between(net: Net, x: Tensor) -> Tensor:
    y = net.f1(x)
    z = y[:, :1]
    y.mul_(2)
    return F.relu(y) + z


def gelu_read_inside(net: Net, x: Tensor) -> Tensor:
    y = net.f1(x)
    inner = torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * torch.pow(y, 3.0)))
    return 0.5 * y * (1 + inner) + inner


def norm_beside(net: Net, x: Tensor) -> Tensor:
    y = net.c1(x)
    return net.b1(y) + y


def in_place_of_the_batch(net: Net, x: Tensor) -> Tensor:
    x.relu_()
    return net.f1(x) + x


def residual_of_an_image(net: Net, x: Tensor) -> Tensor:
    y = net.c1(x)
    return F.relu(net.c2(y.sigmoid()) + net.b1(y))


def pooled_to_one(net: Net, x: Tensor) -> Tensor:
    pooled = F.adaptive_avg_pool2d(net.c1(x.to(memory_format=torch.channels_last)).sigmoid(), 1)
    return net.c2(pooled.expand(-1, -1, 3, 3).sigmoid())


def seen_otherwise(net: Net, x: Tensor) -> Tensor:
    h = net.c1(x).sigmoid()
    return net.c2(h.as_strided_(h.shape, (512, 64, 1, 8)))


def masked(net: Net, x: Tensor) -> Tensor:
    return net.layer(x, src_key_padding_mask=torch.arange(4).expand(6, 4) > 2)


def wide_block(net: Net, x: Tensor) -> Tensor:
    return F.relu(net.wide_norm(net.wide(x)) + x.mean((2, 3), keepdim=True).repeat(1, 6, 4, 4)[:, :16])


def of_a_parameter(net: Net, x: Tensor) -> Tensor:
    return F.relu(net.wide(net.picture)) * x.mean((1, 2, 3))[:, None, None, None]


def residual_of_its_input(net: Net, x: Tensor) -> Tensor:
    h = net.f1(x.sigmoid())
    return net.f2(h) + h


def bias_of_one(net: Net, x: Tensor) -> Tensor:
    return torch.addmm(net.one, x.flatten(1)[:, :16].sigmoid(), net.f1.weight.t())


def by_gates(net: Net, x: Tensor) -> Tensor:
    h = x.flatten(1)[:, :16].sigmoid()
    i, f, g = (torch.addmm(net.biases[k], h, net.gates[k]) for k in range(3))
    return torch.sigmoid(i) * torch.tanh(g) + f


def by_parts(net: Net, x: Tensor) -> Tensor:
    h = x.flatten(1)[:, :16].sigmoid()
    q, k, v = net.joined.chunk(3, dim=1)
    h = torch.tanh(h @ q) * (h @ k.t()) + F.linear(h, v, net.biases.flatten()[20:36])
    return h.relu() @ net.joined[:, 3:19].squeeze() + h.tanh() @ net.joined.view(4, 12, 16).flatten(0, 1).split(16)[1]


def by_expanded(net: Net, x: Tensor) -> Tensor:
    return F.linear(x, net.f1.weight[:1].expand(7, 16))


def bias_of_a_sum(net: Net, x: Tensor) -> Tensor:
    return F.linear(x.flatten(0, 1), net.gates[1], net.biases.sum(0)).reshape(6, -1)


def wider_residual(net: Net, x: Tensor) -> Tensor:
    h = x.flatten(0, 1)
    return (net.f1(h.sigmoid()) + h.double()).to(x.dtype).reshape(6, -1)


def residual_of_truths(net: Net, x: Tensor) -> Tensor:
    h = x.flatten(0, 1)
    kept = net.f2(h) > 0
    return (net.f1(h.sigmoid()) + kept.masked_fill_(h > 1, False)).reshape(6, -1)


# name -> (rewrite, a form, whether it takes images, whether the rewrite has something to do there)
FORMS: dict[str, tuple[str, Form, bool, bool]] = {
    "gelu": ("gelu", lambda net, x: net.f2(gelu_by_formula(net.f1(x))), False, True),
    "gelu of another factor": ("gelu", lambda net, x: gelu_by_formula(net.f1(x), 0.0447), False, False),
    "gelu read inside": ("gelu", gelu_read_inside, False, False),
    "encoder": ("attention", lambda net, x: net.layer(x), False, True),
    "encoder, norm first": ("attention", lambda net, x: net.pre(x), False, True),
    "encoder, masked": ("attention", masked, False, False),
    "attention": ("attention", lambda net, x: net.att(x, x, x, need_weights=False)[0], False, True),
    "attention with weights": ("attention", lambda net, x: net.att(x, x, x)[0], False, False),
    "cross attention": ("attention", lambda net, x: net.att(x, x + 1, x, need_weights=False)[0], False, False),
    "product": ("products", lambda net, x: torch.sigmoid(net.f1(x)), False, True),
    "product of a changed weight": ("products", lambda net, x: F.linear(x, net.f1.weight * 2), False, False),
    "product and a bias of one element": ("products", bias_of_one, False, False),
    "product by a part of a weight": ("products", lambda net, x: F.linear(x, net.f1.weight[:7]), False, True),
    "products by gates": ("products", by_gates, False, True),
    "products by parts of a joined weight": ("products", by_parts, False, True),
    "product by a weight turned round": ("products", lambda net, x: F.linear(x, net.f1.weight.flip(0)), False, False),
    "product by rows chosen by number": ("products", lambda net, x: F.linear(x, net.f1.weight[[3, 1]]), False, False),
    "product by an expanded row": ("products", by_expanded, False, False),
    "product with a bias of another parameter's sum": ("products", bias_of_a_sum, False, False),
    "batch norm": ("batch_norm", lambda net, x: net.b1(net.c1(x)), True, True),
    "batch norm of what is read beside": ("batch_norm", norm_beside, True, False),
    "batch norm before": ("batch_norm", lambda net, x: net.c2(net.b1(net.c1(x).sigmoid())), True, False),
    "activation": ("epilogues", lambda net, x: F.relu(net.f1(x.sigmoid())), False, True),
    "product of an image": ("products", lambda net, x: net.wide(x), True, True),
    "product after strides of sizes 1": ("products", pooled_to_one, True, True),
    "product of what is read otherwise": ("products", seen_otherwise, True, False),
    "product of a parameter": ("products", of_a_parameter, True, True),
    "product of an image with what follows": ("epilogues", wide_block, True, True),
    "residual": ("epilogues", lambda net, x: net.f2(net.f1(x).sigmoid()) + x, False, True),
    "residual of another precision": ("epilogues", wider_residual, False, False),
    "residual of truths": ("epilogues", residual_of_truths, False, False),
    "residual of an image": ("epilogues", residual_of_an_image, True, True),
    "activation of what is read twice": ("epilogues", read_twice, False, True),
    "written between": ("epilogues", written_between, False, False),
    "chain": ("chains", lambda net, x: net.f3(F.relu(net.f2(F.relu(net.f1(x.sigmoid()))))), False, True),
    "chain whose middle is read": ("chains", lambda net, x: (y := net.f2(F.relu(net.f1(x)))) + net.f3(y), False, True),
    "chain whose first result is its residual too": ("chains", residual_of_its_input, False, False),
    "in place": ("in_place", lambda net, x: net.f1(x).sigmoid().mul(3).clamp(min=0.1), False, True),
    "in place of the batch": ("in_place", in_place_of_the_batch, False, False),
}


def size(program: Program, rewrite: str) -> int:
    """What the rewrite makes smaller, or more of."""
    if rewrite == "in_place":
        return sum(node.over is not None for node in program.nodes)
    if rewrite == "products":
        return sum(node.product is not None for node in program.nodes)
    return len(program.nodes)


@pytest.mark.parametrize("name", FORMS)
def test_a_rewrite_is_done_where_it_may(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite, form, image, done = FORMS[name]
    full = program_of(form, image)
    monkeypatch.setattr(planner, "REWRITES", {k: v for k, v in REWRITES.items() if k != rewrite})
    assert (size(full, rewrite) != size(program_of(form, image), rewrite)) is done


@pytest.mark.parametrize("left_out", [None, *REWRITES])
@pytest.mark.parametrize("name", FORMS)
def test_values_are_pytorchs_with_a_rewrite_and_without(
    name: str, left_out: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, form, image, _ = FORMS[name]
    a, b, model, given = network(form, image, 0), network(form, image, 1), network(form, image, 2), batch(image)
    exact, plain = (losses(a, b, network(form, image, 2).to(dtype), given) for dtype in (torch.float64, torch.float32))
    monkeypatch.setattr(planner, "REWRITES", {k: v for k, v in REWRITES.items() if k != left_out})
    ours = mli_fast.sweep(model, a, b, [given], ALPHAS, check="all", progress=False)
    assert ours.provenance["engine"] == "planned"
    allowed = 2 * np.abs(plain / exact - 1).max() + 1e-6
    assert np.abs(ours.loss / exact - 1).max() < allowed


def losses(a: nn.Module, b: nn.Module, model: nn.Module, given: tuple[Tensor, Tensor]) -> np.ndarray:
    found = []
    dtype = next(model.parameters()).dtype
    for alpha in ALPHAS:
        ends = a.state_dict(), b.state_dict()
        model.load_state_dict({k: torch.lerp(v.double(), ends[1][k].double(), alpha) for k, v in ends[0].items()})
        with torch.no_grad():
            outputs = model.eval()(given[0].to(dtype, copy=True))
        found.append(F.cross_entropy(outputs, given[1]).item())
    return np.array(found)


def test_group_norm_gets_a_layout_that_it_takes() -> None:
    """PyTorch's operator takes a format from the strides, of which a kernel's result with sizes of 1 has others."""

    def form(net: Net, x: Tensor) -> Tensor:
        y = net.c1(x)[:, :, :, :1]
        return F.group_norm(net.c2(F.pad(y, (0, 0))), 2)

    a, b, model, given = network(form, True, 0), network(form, True, 1), network(form, True, 2), batch(True)
    ours = mli_fast.sweep(model, a, b, [given], ALPHAS, check="all", progress=False)
    assert ours.provenance["engine"] == "planned"
    np.testing.assert_allclose(ours.loss, losses(a, b, network(form, True, 2).double(), given), rtol=1e-5)


@pytest.mark.parametrize("form", [wide_block, lambda net, x: net.wide(x)])
def test_a_convolution_of_the_batch_is_combined_and_alone_the_same(form: Form) -> None:
    products = [node.product for node in program_of(form, True, "auto").nodes if node.product is not None]
    assert [product.kernel for product in products] == ["combined"]
    products = [node.product for node in program_of(of_a_parameter, True, "auto").nodes if node.product is not None]
    assert [product.kernel for product in products] == ["torch"]
    a, b, model, given = network(form, True, 0), network(form, True, 1), network(form, True, 2), batch(True)
    ours = mli_fast.sweep(model, a, b, [given], ALPHAS, progress=False)
    for p, alpha in enumerate(ALPHAS):
        assert mli_fast.sweep(model, a, b, [given], [alpha], progress=False).loss == ours.loss[p]
    for end, loss in ((a, ours.loss[0]), (b, ours.loss[-1])):
        assert mli_fast.sweep(model, end, end, [given], [0.5], progress=False).loss == loss


def test_parts_of_a_parameter_are_named_and_overlap_little() -> None:
    def windows(net: Net, x: Tensor) -> Tensor:
        h = x.flatten(1)[:, :16].sigmoid()
        return sum((h @ net.joined[:, k : k + 16] for k in range(32)), start=torch.zeros(6, 16))

    products = [node.product for node in program_of(windows, False).nodes if node.product is not None]
    assert {product.weight.name for product in products} == {"joined"}
    assert len({product.weight for product in products}) == 9  # 9 x 16 x 16 elements are three times the parameter's
    same = [node.product for node in program_of(by_gates, False).nodes if node.product is not None]
    assert sorted(str(product.weight) for product in same) == ["part of gates"] * 3


def test_parts_of_checkpoints_that_lie_otherwise_in_memory() -> None:
    a, b, model, given = (
        network(by_parts, False, 0),
        network(by_parts, False, 1),
        network(by_parts, False, 2),
        batch(False),
    )
    expected = mli_fast.sweep(model, a, b, [given], ALPHAS, progress=False)
    turned = {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in a.state_dict().items()}
    ours = mli_fast.sweep(model, turned, b, [given], ALPHAS, check="all", progress=False)
    assert ours.loss.tolist() == expected.loss.tolist()


def test_what_is_written_through_views_lies_as_in_the_record() -> None:
    """A convolution's result lies with its channels innermost, what is chosen of it likewise; `view` would not do."""

    def form(net: Net, x: Tensor) -> Tensor:
        h = net.c1(x)[torch.tensor([1, 0, 2, 5, 4, 3])]
        h.transpose(-1, -2).mul_(1.1)
        return h.sigmoid_().view(6, -1) + net.c2(h).view(6, -1).relu_()

    a, b, model, given = network(form, True, 0), network(form, True, 1), network(form, True, 2), batch(True)
    expected = losses(a, b, network(form, True, 2).double(), given)
    for check in ("all", False):
        ours = mli_fast.sweep(model, a, b, [given], ALPHAS, check=check, progress=False)
        assert ours.provenance["engine"] == "planned"
        np.testing.assert_allclose(ours.loss, expected, rtol=1e-5)
        alone = mli_fast.sweep(model, a, a, [given], [0.5], check=check, progress=False)
        assert alone.provenance["engine"] == "planned"
        assert alone.loss == ours.loss[0]


@pytest.mark.parametrize("sizes", [(7,), (5, 3), (3, 4, 2), (1,), (1, 1), (1, 5)], ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 2), (4, 2), (16, 1)], ids=str)
@pytest.mark.parametrize("examples", [1, 2])
def test_a_convolution_of_the_batch_whatever_its_sizes(
    examples: int, channels: int, groups: int, sizes: tuple[int, ...]
) -> None:
    class Of(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1](channels, 16, 3, padding=1, groups=groups)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.conv(x)).flatten(1)[:, :5]

    torch.manual_seed(0)
    a, b, model = Of(), Of(), Of()
    given = torch.randn(examples, channels, *sizes), torch.arange(examples) % 5
    ours = mli_fast.sweep(model, a, b, [given], ALPHAS, check=False, progress=False)
    np.testing.assert_allclose(ours.loss, losses(a, b, Of().double(), given), rtol=1e-5)
    assert mli_fast.sweep(model, a, a, [given], [0.5], check=False, progress=False).loss == ours.loss[0]


def test_group_norm_sees_one_layout_whichever_parameters_move() -> None:
    """Its last bits depend on the layout; of what all points share it is computed elsewhere than of a point's own."""

    def form(net: Net, x: Tensor) -> Tensor:
        return F.elu(F.group_norm(net.c2(x.repeat(1, 3, 1, 1)[:, :8]), 2))

    a, b, model = network(form, True, 0), network(form, True, 1), network(form, True, 2)
    for examples in (1, 6):
        given = [(x[:examples], y[:examples]) for x, y in [batch(True)]]
        ours = mli_fast.sweep(model, a, b, given, ALPHAS, progress=False)
        for end, loss in ((a, ours.loss[0]), (b, ours.loss[-1])):
            assert mli_fast.sweep(model, end, end, given, [0.5], progress=False).loss == loss


@pytest.mark.parametrize("what", ["pixel", "weight", "variance", "infinite pixel"])
@pytest.mark.parametrize("activation", [F.relu, F.gelu, F.silu, torch.tanh])
@pytest.mark.parametrize(("channels", "out", "groups"), [(1, 16, 1), (4, 6, 1), (16, 32, 1), (8, 8, 8)])
def test_nan_stays_nan_through_what_follows_a_convolution(
    channels: int, out: int, groups: int, activation: Callable[[Tensor], Tensor], what: str
) -> None:
    class Of(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(channels, channels, 1)
            self.conv = nn.Conv2d(channels, out, 3, padding=1, groups=groups)
            self.norm = nn.BatchNorm2d(out)

        def forward(self, x: Tensor) -> Tensor:
            return activation(self.norm(self.conv(torch.tanh(self.first(x))))).amax((2, 3))[:, :5]

    torch.manual_seed(0)
    a, b, model = Of(), Of(), Of()
    data = [(torch.randn(3, channels, 8, 8), torch.arange(3)) for _ in range(2)]
    if "pixel" in what:
        data[1][0][1, 0, 2, 3] = float("nan" if what == "pixel" else "inf")
    with torch.no_grad():
        b.norm.running_var[1] = -0.5 if what == "variance" else 2.0
        b.conv.weight[0, 0, 0, 0] = float("nan") if what == "weight" else 1.0
    options: dict[str, Any] = {"progress": False, "check": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with forced("plain"):
            expected = mli_fast.sweep(model, a, b, data, ALPHAS, **options).loss
        found = mli_fast.sweep(model, a, b, data, ALPHAS, **options)
    assert "planned" in found.provenance["engine"]
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5, equal_nan=True)
