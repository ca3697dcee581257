"""The options of ``mli-fast sweep`` and what their help says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        help="The architecture: package.module:name of an nn.Module, or of a function that returns one. The current "
        "folder is searched first.",
        metavar="PKG.MOD:NAME",
    ),
]
Theta0 = Annotated[
    str,
    typer.Option(
        "--theta-0", help="Checkpoint at alpha = 0: .safetensors, .pt, .pth or a folder of shards.", metavar="PATH"
    ),
]
ThetaT = Annotated[str, typer.Option("--theta-T", help="Checkpoint at alpha = 1, alike.", metavar="PATH")]
Data = Annotated[
    str,
    typer.Option(
        help="The examples: package.module:name of an iterable of (inputs, targets) batches or of one (X, y) pair of "
        "tensors, or of a function that returns one.",
        metavar="PKG.MOD:NAME",
    ),
]
Alphas = Annotated[
    str,
    typer.Option(
        help="Where to evaluate: a count of points from 0 to 1, or values such as 0,0.25,1 (outside [0, 1] "
        "extrapolates).",
        metavar="COUNT|LIST",
    ),
]
Criterion = Annotated[
    str, typer.Option(help="The loss: cross_entropy, mse, nll, bce_with_logits or causal_lm.", metavar="NAME")
]
Metric = Annotated[
    list[str],
    typer.Option(
        help="Beside the loss: accuracy, class_loss, class_accuracy, prediction_histogram; repeat for several, or "
        "'none'.",
        metavar="NAME",
    ),
]
BatchNorm = Annotated[
    str,
    typer.Option(
        help="Running statistics of batch norm between the ends: interpolate, start or end.", metavar="POLICY"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp64, fp32, tf32, bf16 or fp16; if not given, that of the parameters.", metavar="NAME"),
]
Backend = Annotated[
    str, typer.Option(help="auto, reference, native or triton; 'mli-fast info' says which work here.", metavar="NAME")
]
Chunk = Annotated[str, typer.Option(help="Points per pass, or auto.", metavar="N|auto")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; if not given, where the model is.", metavar="NAME")
]
Out = Annotated[
    list[Path],
    typer.Option(help="Write the result here, by suffix .nc, .json or .csv; repeat for several.", metavar="FILE"),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Also draw the curve into this file (.png, .pdf, .svg).", metavar="FILE"),
]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Show a progress bar; if not given, on a terminal only."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show Python's traceback when something goes wrong.")]
