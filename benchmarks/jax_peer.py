"""JAX as a peer."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.peer import Options, Run, Unavailable, batches_of, parted, passes
from benchmarks.points import Coefficients
from benchmarks.workloads import Problem


def jax_loop(problem: Problem, options: Options) -> Run:
    """JAX: jit of vmap over the points, in its own layouts; one point at a time is jit without vmap."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    import jax.numpy as jnp

    from benchmarks.jax_models import forward_for

    forward = forward_for(problem.model_factory())
    if forward is None or problem.calibration:
        raise Unavailable("this network, or measuring its batch norms anew, is not written in JAX here")

    def array(value: Tensor, image: bool) -> Any:
        moved = value.permute(2, 3, 1, 0) if value.dim() == 4 else value  # OIHW -> HWIO
        moved = value.permute(0, 2, 3, 1) if image and value.dim() == 4 else moved  # NCHW -> NHWC
        return jnp.asarray(moved.contiguous().numpy())

    floating = [name for name, value in problem.anchors[0].items() if value.is_floating_point()]
    anchors = {name: [array(anchor[name], image=False) for anchor in problem.anchors] for name in floating}
    batches = [(array(x, image=True), jnp.asarray(y.numpy())) for x, y in batches_of(problem, options)]

    def at_point(coefficients: Any, anchors: Any, x: Any, y: Any) -> Any:
        values = {k: sum(c * a for c, a in zip(coefficients[k], anchors[k], strict=True)) for k in anchors}
        logits = forward(values, x)
        picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(logits, axis=-1) - picked).sum()

    def at_points(moving: Any, held: Any, anchors: Any, x: Any, y: Any) -> Any:
        return jax.vmap(lambda coefficients: at_point(held | coefficients, anchors, x, y))(moving)

    single = options.points == 1
    losses, losses_at = jax.jit(at_points), jax.jit(at_point)

    def columns(rows: Coefficients) -> Any:  # [..., R] -> R arrays [...]
        return {name: list(jnp.asarray(np.moveaxis(c, -1, 0), jnp.float32)) for name, c in rows.items()}

    def run() -> np.ndarray:
        totals = np.zeros(problem.count)
        for chosen in passes(problem.count, options):
            rows = {name: problem.coefficients[name][chosen] for name in floating}
            if single:
                point = columns({name: c[0] for name, c in rows.items()})
                parts = [losses_at(point, anchors, x, y) for x, y in batches]
            else:
                moving, held = map(columns, parted(rows))
                parts = [losses(moving, held, anchors, x, y) for x, y in batches]
            totals[chosen] = np.sum([np.asarray(part, np.float64) for part in parts], axis=0)
        return totals / len(problem.X)

    return run
