"""What other programs write: named by its first bytes, whatever it is called, with the way out."""

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mli_fast.checkpoints import load_state
from tests.checkpoints.cases import assert_same, mlp, state_of, write_torch


def npz() -> bytes:
    held = io.BytesIO()
    np.savez(held, weight=np.ones(3))
    return held.getvalue()


def npy() -> bytes:
    held = io.BytesIO()
    np.save(held, np.ones(3))
    return held.getvalue()


def zipped(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as written:
        for name in names:
            written.writestr(name, b"x")
    return held.getvalue()


def tar() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as written:
        written.addfile(tarfile.TarInfo("storages"))
    return held.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "pickle": (pickle.dumps({"w": np.ones(30)}, protocol=2), "a pickle that torch.save did not write.*pickle.load"),
    "pickle-4": (pickle.dumps({"w": np.ones(30)}, protocol=4), "a pickle that torch.save did not write.*pickle.load"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file.*h5py"),
    "keras": (zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras model"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(600), "a GGUF file.*safetensors"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x90\x01" + bytes(99), "an ONNX model.*initializers"),
    "npz": (npz(), "an .npz of NumPy.*numpy.load"),
    "npy": (npy(), "an array of NumPy.*numpy.load"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer.*git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML or XML page.*fetch the file again"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an HTML or XML page"),
    "gzip": (gzip.compress(bytes(100)), "compressed by gzip.*gunzip"),
    "tar": (tar(), "a tar archive"),
    "zip": (zipped("notes.txt", "data.csv"), "a zip archive that torch.save did not write .it holds notes.txt, data"),
}


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "pytorch_model.bin", "w"])
@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_format_is_named_with_the_way_out(case: str, name: str, tmp_path: Path) -> None:
    content, words = FOREIGN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: this is {words}"):
        load_state(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_what_torch_save_wrote_is_not_taken_for_another_pickle(new: bool, protocol: int, tmp_path: Path) -> None:
    path, state = tmp_path / "w.pt", state_of(mlp())
    torch.save(state, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    assert_same(load_state(path), state)


@pytest.mark.parametrize("name", ["w.pt", "pytorch_model.bin", "w"])
def test_safetensors_under_another_name(name: str, tmp_path: Path) -> None:
    state = state_of(mlp())
    save_file(state, tmp_path / name)
    assert_same(dict(sorted(load_state(tmp_path / name).items())), dict(sorted(state.items())))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_torch_save_under_the_name_of_safetensors(new: bool, tmp_path: Path) -> None:
    state = state_of(mlp())
    assert_same(load_state(write_torch(tmp_path / "w.safetensors", state, new)), state)


def test_dtypes_that_only_newer_readers_know(tmp_path: Path) -> None:
    state = {"w": torch.ones(4).to(torch.float8_e8m0fnu)}
    save_file(state, tmp_path / "w.safetensors")
    found = load_state(tmp_path / "w.safetensors")["w"]
    assert torch.equal(found.view(torch.uint8), state["w"].view(torch.uint8))


def touched(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    return make


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "shards": (
        touched("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        r"shards without their index \(model-00001-of-00002.safetensors, .*index.json",
    ),
    "one-shard": (touched("model-00001-of-00002.safetensors"), "shards without their index"),
    "diffusers": (
        touched("model_index.json", "unet/w.safetensors", "vae/w.bin", "scheduler/config.json"),
        r"a pipeline of diffusers; pass the folder of one of its models \(unet, vae\)",
    ),
    "run": (
        touched("checkpoint-1000/w.pt", "checkpoint-500/w.pt", "checkpoint-best"),
        "a run with checkpoints below it; pass one of checkpoint-500, checkpoint-1000$",
    ),
    "dcp": (touched(".metadata", "__0_0.distcp"), "torch.distributed.checkpoint: convert it with .*dcp_to_torch"),
    "deepspeed": (touched("global_step100/x", "latest", "zero_to_fp32.py"), "DeepSpeed.*zero_to_fp32.py"),
    "deepspeed-step": (
        touched("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "DeepSpeed.*zero_to_fp32.py",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_foreign_folder_is_named_with_the_way_out(case: str, tmp_path: Path) -> None:
    make, words = FOLDERS[case]
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_state(tmp_path)


@pytest.mark.parametrize("beside", ["checkpoint-5/w.pt", "global_step5/x", ".metadata"])
def test_whole_weights_beside_them_are_read(beside: str, tmp_path: Path) -> None:
    touched(beside)(tmp_path)
    save_file(state_of(mlp()), tmp_path / "model.safetensors")
    assert set(load_state(tmp_path)) == set(state_of(mlp()))
