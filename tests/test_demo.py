"""The demo end to end in its short form, and the parts that check its own figures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mli_fast
from mli_fast.demo import main
from mli_fast.demo.networks import NETWORKS, TITLES
from mli_fast.demo.plain import plain_loop
from mli_fast.demo.run import check_agreement, train_and_save
from mli_fast.demo.training import RECIPES, digits, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder a short demo wrote, and what it printed."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("demo") / "made" / "by-it"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(out, quick=True)
    return out, printed.getvalue()


def test_table_has_a_line_per_model_and_part(quick: tuple[Path, str]) -> None:
    _, printed = quick
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * len(NETWORKS)
    for column in ("model", "min Delta", "monotone", "sweep s", "times faster"):
        assert column in lines[0]
    for title in TITLES.values():
        assert [line.split("|")[2].strip() for line in lines if title in line] == ["train", "test"]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("part", ["train", "test"])
def test_saved_result_is_that_of_its_checkpoints(quick: tuple[Path, str], name: str, part: str) -> None:
    folder = quick[0] / name
    result = mli_fast.load(folder / f"{part}.nc")
    assert result.alphas.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert result["class_loss"].shape == result["class_accuracy"].shape == (5, 10)
    data = digits()[part]
    assert result.count == len(data[1])
    for index, state in ((0, "init"), (-1, "final")):
        model = NETWORKS[name]().eval()
        model.load_state_dict(load_file(folder / f"{state}.safetensors"))
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(data[0]), data[1]).item()
        assert result.loss[index] == pytest.approx(loss, rel=1e-5)


def test_plot_is_written(quick: tuple[Path, str]) -> None:
    assert (quick[0] / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_digits_are_cut_the_same_way_every_time() -> None:
    first, second = digits(), digits()
    assert {part: len(labels) for part, (_, labels) in first.items()} == {"train": 1347, "test": 450}
    for part in first:
        assert all(torch.equal(a, b) for a, b in zip(first[part], second[part], strict=True))
    images = first["train"][0]
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert images.dtype == torch.float32


def test_training_repeats_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    data, before = digits(), torch.get_rng_state()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        train_and_save("mlp", folder, data, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    for state in ("init", "final"):
        a, b = (load_file(tmp_path / folder / f"{state}.safetensors") for folder in "ab")
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_mlp_learns_the_digits() -> None:
    data = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = NETWORKS["mlp"]()
    train(model, data["train"], RECIPES["mlp"], seed=1)
    images, labels = data["test"]
    with torch.no_grad():
        assert (model(images).argmax(dim=1) == labels).double().mean() > 0.97


def test_plain_loop_blends_by_class() -> None:
    """At alpha = 1/2 of two one-layer networks the logits are the mean of theirs."""
    model = torch.nn.Linear(3, 10)
    random = torch.Generator().manual_seed(0)
    weights, biases = torch.randn(2, 10, 3, generator=random), torch.randn(2, 10, generator=random)
    ends = [{"weight": weight, "bias": bias} for weight, bias in zip(weights, biases, strict=True)]
    inputs, labels = torch.randn(200, 3, generator=random), torch.arange(200) % 10
    got = plain_loop(model, *ends, (inputs, labels), [0.5])
    logits = sum(inputs @ end["weight"].T + end["bias"] for end in ends) / 2
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().numpy()
    assert got["loss"][0] == pytest.approx(losses.mean(), rel=1e-5)
    assert got["class_loss"][0] == pytest.approx([losses[c::10].mean() for c in range(10)], rel=1e-5)
    hits = (logits.argmax(dim=1) == labels).numpy()
    assert got["accuracy"][0] == hits.mean()
    assert got["class_accuracy"][0].tolist() == [hits[c::10].mean() for c in range(10)]


@pytest.mark.parametrize(("variable", "wrong"), [("loss", 1e-2), ("class_loss", 1e-2), ("accuracy", 0.1)])
def test_disagreement_with_the_plain_loop_is_an_error(quick: tuple[Path, str], variable: str, wrong: float) -> None:
    result = mli_fast.load(quick[0] / "mlp" / "test.nc")
    expected = {name: np.array(result[name]) for name in ("loss", "accuracy", "class_loss", "class_accuracy")}
    check_agreement(result, expected, where="MLP")
    expected[variable][2] += wrong
    with pytest.raises(RuntimeError, match=f"MLP: {variable} of the sweep"):
        check_agreement(result, expected, where="MLP")


def test_disagreement_in_shape_or_by_nan_is_an_error(quick: tuple[Path, str]) -> None:
    result = mli_fast.load(quick[0] / "mlp" / "test.nc")
    for values in (result.loss[:-1], np.full(5, np.nan)):
        with pytest.raises(RuntimeError, match="differ by"):
            check_agreement(result, {"loss": values}, where="MLP")
