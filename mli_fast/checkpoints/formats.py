"""Tells what a file is by its first bytes and what a folder is by its names, and says the way out of foreign ones."""

import re
from collections.abc import Callable
from pathlib import Path

_HEAD = 512  # bytes looked at; a tar archive says so at byte 257
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save's older format begins with, pickled
_ZIP_MAGIC = b"PK\x03\x04"
_LONGEST_HEADER = 100_000_000  # of a safetensors file, by its specification
_PASS = "pass the state dict"

_FOREIGN: list[tuple[Callable[[bytes], bool], str]] = [
    (
        lambda head: head.startswith(b"version https://git-lfs"),
        "a Git LFS pointer, not the weights: run `git lfs pull`, or download the file itself",
    ),
    (
        lambda head: re.match(rb"\s*<(!doctype|html|\?xml)", head.lower()) is not None,
        "an HTML or XML page, not a checkpoint: the download went wrong (a login page, an error), fetch the file again",
    ),
    (
        lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"),
        "an HDF5 file (Keras or others): read it with h5py or Keras, transpose kernels to PyTorch's layout and "
        + _PASS,
    ),
    (
        lambda head: head.startswith(b"GGUF"),
        "a GGUF file (llama.cpp), mostly quantised: take the original .safetensors weights, or dequantise it with "
        f"the gguf package and {_PASS}",
    ),
    (
        lambda head: head.startswith(b"\x93NUMPY"),
        f"an array of NumPy: read it with numpy.load, make tensors with torch.from_numpy and {_PASS}",
    ),
    (lambda head: head.startswith(b"\x1f\x8b"), "compressed by gzip: unpack it with gunzip first"),
    (lambda head: head.startswith(b"\xfd7zXZ\x00"), "compressed by xz: unpack it with unxz first"),
    (lambda head: head.startswith(b"BZh"), "compressed by bzip2: unpack it with bunzip2 first"),
    (lambda head: head.startswith(b"\x28\xb5\x2f\xfd"), "compressed by zstd: unpack it with unzstd first"),
    (
        lambda head: head[257:262] == b"ustar",
        "a tar archive: unpack it with tar; if torch.save of PyTorch before 0.2 wrote it, load it with torch.load(..., "
        f"weights_only=False), if you trust it, and {_PASS}",
    ),
    (
        lambda head: re.match(rb"\x08[\x01-\x14][\x12\x1a\x22\x28\x3a\x42]", head) is not None,
        "an ONNX model (protobuf): read its initializers with onnx.numpy_helper.to_array, rename them to the model's "
        f"names and {_PASS}",
    ),
    (
        lambda head: re.match(rb"\x80[\x02-\x05].{18}", head, re.DOTALL) is not None and _TORCH_MAGIC not in head[:64],
        "a pickle that torch.save did not write (pickle.dump, joblib): refused, as reading it would run its code. Way "
        f"out: if you trust it, load it with pickle.load and {_PASS}",
    ),
]


def kind_of(place: Path) -> str:
    """Return "zip", "safetensors" or "torch" (torch.save's older format, or unknown), whatever the file is called.

    Raises:
        ValueError: The format is another one; the message names it, without the path, and says the way out.
    """
    with place.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(_ZIP_MAGIC):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    for recognises, said in _FOREIGN:
        if recognises(head):
            raise ValueError(f"this is {said}")
    return "safetensors" if place.suffix == ".safetensors" and _TORCH_MAGIC not in head[:64] else "torch"


def foreign_zip(names: list[str]) -> str | None:
    """Return what a zip archive of these names is, or None where torch.save wrote it."""
    if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in names):
        return None
    if "model.weights.h5" in names:
        return f"this is a Keras model: read it with Keras, transpose kernels to PyTorch's layout and {_PASS}"
    if names and all(name.endswith(".npy") for name in names):
        return f"this is an .npz of NumPy: read it with numpy.load, make tensors with torch.from_numpy and {_PASS}"
    shown = ", ".join(names[:3]) or "nothing"
    return f"this is a zip archive that torch.save did not write (it holds {shown}): unpack it and pass what it holds"


def foreign_folder(folder: Path) -> str | None:
    """Return what a folder is that several programs share the files of, with the way out, or None."""
    names = sorted(entry.name for entry in folder.iterdir())
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return (
            "the folder is a checkpoint of torch.distributed.checkpoint: convert it with `python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt` and pass that file"
        )
    if any(re.fullmatch(r"global_step\d+|.*_optim_states\.pt", name) for name in names):
        return (
            "the folder is a checkpoint of DeepSpeed, whose weights are split: run its zero_to_fp32.py and pass the "
            "file that it writes"
        )
    return None


def run_folder(folder: Path) -> str | None:
    """Return what a folder is that has its checkpoints one level below, with the way out, or None."""
    if (folder / "model_index.json").is_file():
        parts = sorted(
            sub.name for sub in folder.iterdir() if (sub.is_dir() and any(sub.glob("*.safetensors")))
            or (sub.is_dir() and any(sub.glob("*.bin")))
        )  # fmt: skip
        return f"the folder is a pipeline of diffusers; pass the folder of one of its models ({', '.join(parts)})"
    steps = sorted(
        (int(found[1]), sub.name)
        for sub in folder.iterdir()
        if (found := re.fullmatch(r"checkpoint-(\d{1,18})", sub.name)) and sub.is_dir()
    )
    if steps:
        return f"the folder is a run with checkpoints below it; pass one of {', '.join(name for _, name in steps[-5:])}"
    return None
