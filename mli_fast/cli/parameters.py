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
        help="Where to evaluate: a count of points from 0 to 1, values such as 0,0.25,1 (outside [0, 1] "
        "extrapolates), or 'adaptive': where the loss bends.",
        metavar="COUNT|LIST|adaptive",
    ),
]
Criterion = Annotated[
    str, typer.Option(help="The loss: cross_entropy, mse, nll, bce_with_logits or causal_lm.", metavar="NAME")
]
Metric = Annotated[
    list[str],
    typer.Option(
        help="Beside the loss: accuracy, class_loss, class_accuracy, prediction_histogram, gauss_length, "
        "gauss_length_jvp, path_length, monotone_examples, flips, agreement, cka, loss_slope; repeat for several, or "
        "'none'.",
        metavar="NAME",
    ),
]
BatchNorm = Annotated[
    str,
    typer.Option(
        help="Running statistics of batch norm between the ends: interpolate, start, end, batch, or recalibrate, "
        "recalibrate-ema or update-bn over --calibration.",
        metavar="POLICY",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="The data that batch norm is recalibrated over, given as --data is; for recalibrate-ema and update-bn in "
        "batches.",
        metavar="PKG.MOD:NAME",
    ),
]
Schedule = Annotated[
    list[str],
    typer.Option(
        help="Let some parameters move otherwise: WHICH=HOW, where WHICH is weight, bias, norm, embedding, last_bias, "
        "a layer or a pattern of names, and HOW is start, end, linear, homogeneous or power:P; repeat for several.",
        metavar="WHICH=HOW",
    ),
]
Tol = Annotated[
    float | None,
    typer.Option(help="With --alphas adaptive: the error of the curve that is allowed; 0.01 if not given."),
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
