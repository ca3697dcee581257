"""The commands of ``mli-fast``."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Annotated

import typer

from mli_fast.cli import arguments, parameters, text
from mli_fast.plot import check_plot_target, save_plot
from mli_fast.result import load
from mli_fast.storage import check_target

# \b keeps the lines of the paragraph as they are.
_EXAMPLE = """\b
Example: with make_model() and test_loader() in the file mycode.py here,
  mli-fast sweep --model mycode:make_model --data mycode:test_loader \\
    --theta-0 init.safetensors --theta-T final.safetensors \\
    --alphas 50 --out curve.nc --plot curve.png
  mli-fast show curve.nc
"""

app = typer.Typer(
    name="mli-fast",
    help="Loss and accuracy along the straight line between two checkpoints of a network, all points at once.",
    epilog="New here? 'mli-fast demo' shows it at work, 'mli-fast sweep --help' says how to run it on your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; the entry point of ``mli-fast``."""
    app(prog_name="mli-fast")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mli-fast {_version('mli-fast')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Train three small networks, sweep and plot them.")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.", metavar="FOLDER")] = Path("demo-output"),
    quick: Annotated[bool, typer.Option("--quick", help="One epoch and 5 alphas: only to see that it works.")] = False,
    debug: parameters.Debug = False,
) -> None:
    """Train three small networks on handwritten digits, sweep each from its start to its end, and plot the curves.

    Takes a minute or two on two cores; nothing is downloaded. Needs scikit-learn.
    """
    with text.errors_as_lines(debug):
        from mli_fast.demo import main as run_demo

        run_demo(out, quick=quick)


@app.command(epilog=_EXAMPLE, short_help="Evaluate a network between two checkpoints.")
def sweep(
    model: parameters.Model,
    theta_0: parameters.Theta0,
    theta_t: parameters.ThetaT,
    data: parameters.Data,
    alphas: parameters.Alphas = "50",
    criterion: parameters.Criterion = "cross_entropy",
    metric: parameters.Metric = ["accuracy"],  # noqa: B006  typer copies it
    batch_norm: parameters.BatchNorm = "interpolate",
    calibration: parameters.Calibration = None,
    schedule: parameters.Schedule = [],  # noqa: B006  typer copies it
    precision: parameters.Precision = None,
    backend: parameters.Backend = "auto",
    chunk: parameters.Chunk = "auto",
    device: parameters.Device = None,
    out: parameters.Out = [],  # noqa: B006  typer copies it
    plot: parameters.Plot = None,
    tol: parameters.Tol = None,
    progress: parameters.Progress = None,
    debug: parameters.Debug = False,
) -> None:
    """Evaluate a network at points (1 - alpha) theta_0 + alpha theta_T on the line between two checkpoints."""
    with text.errors_as_lines(debug):
        # All that can be found wrong without computing is found before it.
        points, moves = arguments.parse_alphas(alphas), arguments.parse_schedule(schedule)
        for path in out:
            check_target(path)
        if plot is not None:
            check_plot_target(plot)
        network, loader = arguments.build_model(model), arguments.build_data(data)

        import mli_fast

        result = mli_fast.sweep(
            network,
            theta_0,
            theta_t,
            loader,
            points,
            criterion=criterion,
            metrics=arguments.parse_metrics(metric),
            batch_norm=batch_norm,
            calibration=None if calibration is None else arguments.build_data(calibration, "--calibration"),
            schedule=moves,
            precision=precision,
            device=device,
            backend=backend,
            chunk=arguments.parse_chunk(chunk),
            progress=progress,
            tol=tol,
        )
        # Saved before anything else can go wrong.
        for path in out:
            result.save(path)
        text.print_summary(result)
        if plot is not None:
            save_plot(result, plot)
        for path in [*out, *([plot] if plot is not None else [])]:
            typer.echo(f"wrote {path}")


@app.command(short_help="Print a saved result.")
def show(
    curve: Annotated[Path, typer.Argument(help="A result: .nc, .json or .csv.", metavar="FILE")],
    plot: parameters.Plot = None,
    debug: parameters.Debug = False,
) -> None:
    """Print a saved result: how it was made, every point with its standard error, and min Delta."""
    with text.errors_as_lines(debug):
        result = load(curve)
        text.print_provenance(result.provenance)
        typer.echo()
        text.print_curve(result)
        if plot is not None:
            check_plot_target(plot)
            save_plot(result, plot)
            typer.echo(f"wrote {plot}")


@app.command(short_help="Print versions, the machine and the backends.")
def info(debug: parameters.Debug = False) -> None:
    """Print versions, the machine, and which backends work here or why they do not."""
    with text.errors_as_lines(debug):
        import torch

        import mli_fast

        packages = ("mli-fast", "torch", "numpy", "xarray", "h5netcdf", "triton")
        rows = [["python", platform.python_version()], *([name, _version(name)] for name in packages)]
        rows.append(["machine", f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"])
        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
        rows.append(["cuda device", cuda])
        text.print_table(["<", "<"], rows)
        typer.echo()
        entries = []
        for name, entry in mli_fast.backends().items():
            notes = [str(entry["reason"])] if entry.get("reason") else []
            more = {key: value for key, value in entry.items() if key not in ("available", "reason") and value}
            notes += [f"{key}: {text.in_short(value)}" for key, value in more.items()]
            entries.append([name, "yes" if entry["available"] else "no", "; ".join(notes)])
        text.print_table(["<backend", "<usable", "<notes"], entries)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
