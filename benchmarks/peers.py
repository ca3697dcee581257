"""The peers: every other way of computing the mean cross entropy at points of parameter space, at its honest best.

A peer is called as `peer(model_factory, theta_0, theta_T, X, y, alphas, batch_size) -> losses [A]`, or prepared once
with `peer.prepare(problem, options)`, which compiles and copies outside the clock, and then run again and again.
"""

from __future__ import annotations

from benchmarks.jax_peer import jax_loop
from benchmarks.landscapes import loss_landscapes, own_question
from benchmarks.loops import compiled_loop, plain_loop, tuned_loop, update_bn_loop
from benchmarks.peer import Options, Peer, Run, Unavailable
from benchmarks.stacked import compiled_vmap, vmapped

__all__ = ["PEERS", "Options", "Peer", "Run", "Unavailable"]

_ALL = (
    Peer("tuned_loop", "tuned loop in memory", tuned_loop, layouts=True),
    Peer("plain_loop", "plain loop, DataLoader", plain_loop, averages=True),
    Peer("update_bn", "tuned loop, update_bn", update_bn_loop, layouts=True, averages=True),
    Peer(
        "loss_landscapes",
        "loss-landscapes",
        loss_landscapes,
        layouts=True,
        follows="tuned_loop",
        package="loss_landscapes",
        answers=own_question,
    ),
    Peer("compiled_loop", "torch.compile loop", compiled_loop, compiled=True, layouts=True, follows="tuned_loop"),
    Peer("vmap", "vmap", vmapped, batched=True),
    Peer("compiled_vmap", "compiled vmap", compiled_vmap, batched=True, compiled=True, follows="vmap"),
    Peer("jax", "JAX vmap + jit", jax_loop, batched=True, compiled=True, package="jax"),
)
PEERS = {peer.name: peer for peer in _ALL}
