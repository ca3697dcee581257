"""How many examples of an (X, y) pair go through the network at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mli_fast.engine.limits import limits
from mli_fast.engine.network import Network
from mli_fast.engine.points import Points
from mli_fast.trees import copied

PROBED = 4  # examples that are run to see how wide the activations get
LEAST = 32


def bytes_per_example(
    network: Network, points: Points, pair: tuple[Tensor, Tensor], device: torch.device
) -> int | None:
    """The widest output of any layer for one example and one point; None where the model does not run as it is.

    It depends on the model and the data alone, not on the points: a point's value must not depend on the others.
    """
    probed = min(PROBED, len(pair[0]))
    widest = 4 * pair[0][:1].numel()

    def seen(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal widest
        if isinstance(output, Tensor) and output.ndim:
            widest = max(widest, output.numel() * output.element_size() // probed)

    hooks = [m.register_forward_hook(seen) for m in network.model.modules()]
    try:
        batch = tuple(t[:probed].to(device) for t in pair)
        network.load(points, 0)
        network.run(copied(batch))
    except Exception:  # noqa: BLE001 - what is wrong is reported when the first batch is run
        return None
    finally:
        for hook in hooks:
            hook.remove()
        network.state.restore()
        network.forget()
    return widest


def rows_per_pass(examples: int, widest: int | None, device: torch.device) -> int:
    """Rows that keep a pass within the limits of the device; batches of one size where that takes few more of them.

    Batches of another size, such as a shorter last one, are recorded anew.

    Args:
        examples: how many there are.
        widest: what `bytes_per_example` gives.
        device: where the passes run.
    """
    limit = limits(device)
    most = LEAST if widest is None else max(LEAST, min(limit.most_rows, limit.activation_bytes // widest))
    fewest = max(1, -(-examples // most))
    even = (examples // count for count in range(fewest, fewest + fewest // 4 + 2) if examples % count == 0)
    return next(even, most)
