"""How many examples of an (X, y) pair go through the network at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mli_fast.engine.evaluators import LoopEngine
from mli_fast.engine.network import Network
from mli_fast.engine.plan import ACTIVATION_BYTES
from mli_fast.engine.points import Points

PROBED = 4  # examples that are run to see how wide the activations get
LEAST, MOST = 32, 4096


def rows_per_pass(network: Network, points: Points, pair: tuple[Tensor, Tensor]) -> int:
    """As many rows as keep the widest output of any layer within `ACTIVATION_BYTES`.

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
        batch = (pair[0][:probed], pair[1][:probed])
        for _ in LoopEngine(network, points).evaluate(batch, 0, 1):
            pass
    except Exception:  # noqa: BLE001 - what is wrong is reported when the first batch is run
        return LEAST
    finally:
        for hook in hooks:
            hook.remove()
    return max(LEAST, min(MOST, ACTIVATION_BYTES // widest))
