"""Files of torch.save that other programs packed or damaged, and files that ask for more than they hold."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mli_fast.checkpoints import archive, files, load_state
from tests.checkpoints.cases import assert_same, write_torch

STATE = {"a": torch.arange(100.0), "b": torch.arange(100.0, 150.0)}


@pytest.fixture(params=[True, False], ids=["mapped", "copied"])
def mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Maps every file, as those of more than 256 MiB are, or none."""
    if request.param:
        monkeypatch.setattr(files, "COPIED", 0)
    return bool(request.param)


def repacked(path: Path, change: Callable[[str, bytes], bytes] = lambda _, data: data, **options: Any) -> Path:
    """Write a zip archive's records again, changed."""
    whole = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", **options) as written:
        for record in whole.infolist():
            written.writestr(record.filename, change(record.filename, whole.read(record)))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], ids=["deflated", "stored"])
@pytest.mark.usefixtures("mapped")
def test_a_file_that_was_packed_again_is_read_right(method: int, tmp_path: Path) -> None:
    path = repacked(write_torch(tmp_path / "w.pt", STATE), compression=method)
    assert_same(load_state(path), STATE)


@pytest.mark.usefixtures("mapped")
def test_records_with_data_descriptors_are_read_right(tmp_path: Path) -> None:
    whole = zipfile.ZipFile(write_torch(tmp_path / "v.pt", STATE))

    class Stream(io.RawIOBase):
        """A file that cannot seek, so that sizes follow the data."""

        def __init__(self) -> None:
            self.written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.written += bytes(data)
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as written:  # type: ignore[arg-type]
        for record in whole.infolist():
            written.writestr(record.filename, whole.read(record))
    path = tmp_path / "w.pt"
    path.write_bytes(stream.written)
    assert zipfile.ZipFile(path).infolist()[0].flag_bits & 8
    assert_same(load_state(path), STATE)


@pytest.mark.usefixtures("mapped")
def test_the_other_byte_order_is_read_right(tmp_path: Path) -> None:
    def swapped(name: str, data: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        is_weight = name.rpartition("/")[0].endswith("/data")
        return struct.pack(f">{len(data) // 4}f", *struct.unpack(f"<{len(data) // 4}f", data)) if is_weight else data

    path = repacked(write_torch(tmp_path / "w.pt", STATE), swapped)
    assert_same(load_state(path), STATE)


@pytest.mark.usefixtures("mapped")
def test_a_record_shorter_than_its_storage_is_refused(tmp_path: Path) -> None:
    path = repacked(
        write_torch(tmp_path / "w.pt", STATE),
        lambda name, data: data[:-4] if name.endswith("data/0") else data,
    )
    with pytest.raises(ValueError, match=r"w\.pt: not a complete.*'data/0' has 396 bytes, its storage needs 400"):
        load_state(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.usefixtures("mapped")
def test_a_record_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", STATE)
    with zipfile.ZipFile(path, "a") as more:
        name = next(name for name in more.namelist() if name.endswith("data/0"))
        more.writestr(name, bytes(400))
    with pytest.raises(ValueError, match=r"w\.pt: the record '.*data/0' occurs twice"):
        load_state(path)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("onto", ["its own header", "the record before"])
def test_records_that_overlap_are_refused(onto: str, tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {**STATE, "c": torch.ones(100)})
    with zipfile.ZipFile(path) as whole:
        places = {record.filename.rpartition("/")[2]: record.header_offset for record in whole.infolist()}
        entry = path.read_bytes().rindex(b"/data/2") - 100
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", entry - 100)
    while struct.unpack_from("<I", data, entry + 42)[0] != places["2"]:
        entry = data.index(b"PK\x01\x02", entry + 4)
    if onto == "the record before":
        struct.pack_into("<I", data, entry + 42, places["0"])
    else:  # the local header claims a long extra field, so that the data lies in what follows
        (extra,) = struct.unpack_from("<H", data, places["2"] + 28)
        struct.pack_into("<H", data, places["2"] + 28, extra + 64)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.pt: not a complete.*overlaps another"):
        load_state(path)


def archived(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, **options: Any) -> Path:
    """Write what torch.load takes for a file of torch.save."""
    with zipfile.ZipFile(path, "w", **options) as written:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **(records or {})}.items():
            written.writestr(f"w/{name}", data)
    return path


def pickle_of(held: object) -> bytes:
    return pickle.dumps(held, protocol=2)


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_UNPACKED", 1 << 20)
    path = repacked(write_torch(tmp_path / "w.pt", {"w": torch.zeros(1 << 20)}), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 14
    with pytest.raises(ValueError, match=r"w\.pt: its records unpack to 4\d+ bytes, the file has \d+: refused"):
        load_state(path)


def nested_tuples() -> bytes:
    return b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."


PICKLES: dict[str, tuple[bytes, str]] = {
    "allocates": (b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x7f\x85R.", "allocates memory"),
    "tensor": (b"\x80\x02ctorch\nFloatTensor\n\x8a\x05\x00\x00\x00\x00\x7f\x85\x81.", "allocates memory"),
    "long-string": (b"\x80\x02X\x00\x00\x00\xf0abc.", "longer than that of any checkpoint"),
    "steps": (b"\x80\x02" + b"}" * 6000 + b".", "longer than that of any checkpoint"),
    "tuples": (nested_tuples(), "nests more than 100 tuples"),
}


@pytest.mark.parametrize("case", PICKLES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickles_that_ask_for_too_much_are_refused(
    case: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "steps":
        monkeypatch.setattr(archive, "MOST_STEPS", 5000)
    pickled, words = PICKLES[case]
    path = tmp_path / "w.pt"
    if zipped:
        archived(path, pickled)
    else:
        head = write_torch(tmp_path / "v.pt", {}, zipped=False).read_bytes()
        path.write_bytes(head[: head.index(b".", head.index(b"little_endian"))] + b"." + pickled + pickle_of([]))
    with pytest.raises(ValueError, match=rf"w\.pt: .*{words}"):
        load_state(path)


def test_storages_larger_than_a_file_of_the_older_format_are_refused(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {"w": torch.ones(200)}, zipped=False)
    data = path.read_bytes().replace(b"K\xc8", b"M\xff\xff")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.pt: not a complete.*storages need 262140 bytes"):
        load_state(path)


def test_more_records_than_a_checkpoint_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_RECORDS", 10)
    path = write_torch(tmp_path / "w.pt", {str(i): torch.ones(1) for i in range(20)})
    with pytest.raises(ValueError, match=r"w\.pt: it has \d+ records, more than the 10 that are read"):
        load_state(path)


@pytest.mark.parametrize("limit", ["MOST_TENSORS", "LONGEST_HEADER"])
def test_more_tensors_than_a_safetensors_file_has(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({str(i): torch.ones(1) for i in range(20)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(files, limit, 10)
    with pytest.raises(ValueError, match=r"w\.safetensors: its header of \d+ bytes lists more tensors than are read"):
        load_state(tmp_path / "w.safetensors")


@pytest.mark.usefixtures("mapped")
def test_everything_that_torch_load_allows_is_followed(tmp_path: Path) -> None:
    held = {
        "model": {"w": torch.nn.Parameter(torch.ones(2)), "c": torch.ones(2, dtype=torch.complex64).conj()},
        "others": [b"abc", bytearray(b"x"), {1, 2}, torch.float32, torch.device("cpu"), 2**70, torch.Size([3]), None],
        "sparse": torch.ones(2, 2).to_sparse(),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    path = write_torch(tmp_path / "w.pt", held)
    assert archive.check_zip(path)  # whole: else it would not be mapped
    found = load_state(path)
    assert torch.equal(found["w"], torch.ones(2))
    assert found["c"].dtype == torch.complex64


def test_a_tensor_far_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pt", {"w": torch.ones(1).expand(1 << 40)})
    with pytest.raises(ValueError, match=r"w\.pt.*'w' of shape \(1099511627776,\) is an expanded tensor"):
        load_state(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("what", ["file", "index", "shard"])
def test_pipes_and_devices_are_not_waited_for(what: str, tmp_path: Path) -> None:
    path = {"file": "w.pt", "index": "model.safetensors.index.json", "shard": "a.safetensors"}[what]
    if what == "shard":
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": path}}))
    os.mkfifo(tmp_path / path)
    with pytest.raises(ValueError, match=r"not a regular file|is missing from the folder"):
        load_state(tmp_path / path if what == "file" else tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "model.safetensors.index.json"])
def test_an_endless_device_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="not a regular file"):
        load_state(tmp_path / name if name.startswith("w") else tmp_path)


def test_an_index_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_INDEX", 10)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match=r"index\.json.*the index is not a regular file of at most 10 bytes"):
        load_state(tmp_path)


def test_json_that_is_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"index\.json.*not valid JSON"):
        load_state(tmp_path)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/w.pt", "a\0b.pt", "x" * 5000], ids=["user", "null", "long"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read|no such file"):
        load_state(path)
