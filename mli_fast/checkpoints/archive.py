"""Checks a file of torch.save before it is read: its zip directory, and what its pickle will ask for; runs no code."""

import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from pickletools import opcodes
from typing import IO, Any, ClassVar, NamedTuple

import torch

from .formats import foreign_zip

MOST_RECORDS = 200_000
MOST_PICKLED = 64 << 20  # bytes of a pickle, which holds no weights
MOST_STEPS = 8_000_000  # reads of a pickle, of which a tensor takes about 50
MOST_UNPACKED = 256 << 20  # bytes that compressed records may take beyond 8 times the file
_DEEPEST = 100  # tuples in tuples: hashing them recurses without a limit
_CODES = {code.name: ord(code.code) for code in opcodes}
_NAMED = (  # what torch.load accepts under weights_only
    "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
    "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET", "LONG_BINGET",
    "BINPUT", "LONG_BINPUT", "LONG1", "PROTO", "STOP",
)  # fmt: skip
_ALLOWED = [_CODES[name] for name in _NAMED]
_UNTYPED = ("UntypedStorage", "TypedStorage")


class UnsafeError(ValueError):
    """What a file asks for is not there, or more than a checkpoint needs."""


class Stored(NamedTuple):
    """A storage that the pickle refers to: its record, and the bytes that its tensors take."""

    key: str
    size: int


def check_zip(place: Path) -> bool:
    """Check a zip file of torch.save and return whether its records may be mapped, that is, lie there as they are.

    Raises:
        UnsafeError: A record is shorter than its storage, records overlap or occur twice, or the file would unpack to
            far more than its size; the message is without the path.
        Exception: Nearly any, from a file that is damaged.
    """
    with zipfile.ZipFile(place) as archive:
        records = archive.infolist()
        said = foreign_zip([record.filename for record in records[:1000]])
        if said is not None:
            raise UnsafeError(said)
        _check_directory(records, place)
        as_it_is = all(_is_as_it_is(record) for record in records)
        if as_it_is:
            _check_places(archive, records)
        pickled = [record for record in records if record.filename.endswith("/data.pkl")]
        if not pickled:  # TorchScript of old, which torch.load refuses
            return False
        if len(pickled) > 1 or pickled[0].file_size > MOST_PICKLED:
            raise UnsafeError("its data.pkl is larger than that of any checkpoint, or there are several")
        with archive.open(pickled[0]) as file:
            stored = scan(file)
        root = pickled[0].filename.removesuffix("data.pkl")
        sizes = {record.filename: record.file_size for record in records}
        for key, size in stored:
            held = sizes.get(f"{root}data/{key}", size)  # torch.load names an absent one
            if held < size:
                raise UnsafeError(
                    f"not a complete file of torch.save (truncated or corrupt): the record 'data/{key}' has {held} "
                    f"bytes, its storage needs {size}"
                )
    return as_it_is


def check_legacy(place: Path) -> None:
    """Check a file of torch.save's older format: five pickles, then the storages.

    Raises:
        UnsafeError: The storages are larger than the file; the message is without the path.
        Exception: Nearly any, from a file that is damaged.
    """
    with place.open("rb") as file:
        stored = [item for _ in range(4) for item in scan(file)]
    needed, size = sum(item.size for item in set(stored)), place.stat().st_size
    if needed > size:
        raise UnsafeError(
            f"not a complete file of torch.save (truncated or corrupt): its storages need {needed} bytes, the file has "
            f"{size}"
        )


def scan(file: IO[bytes]) -> list[Stored]:
    """Return the storages that a pickle refers to, building nothing and importing nothing that it names.

    Raises:
        UnsafeError: The pickle is longer or deeper than a checkpoint's, or allocates beside its storages.
        Exception: Nearly any, from a damaged pickle.
    """
    scanner = _Scanner(_Bounded(file))
    scanner.load()
    return scanner.stored


def _check_directory(records: list[zipfile.ZipInfo], place: Path) -> None:
    if len(records) > MOST_RECORDS:
        raise UnsafeError(f"it has {len(records)} records, more than the {MOST_RECORDS} that are read")
    twice, times = Counter(record.filename for record in records).most_common(1)[0]
    if times > 1:
        raise UnsafeError(f"the record {twice!r} occurs twice, and which one counts is not defined; save it again")
    size, unpacked = place.stat().st_size, sum(record.file_size for record in records)
    if unpacked > (8 * size + MOST_UNPACKED if any(record.compress_type for record in records) else size):
        raise UnsafeError(
            f"its records unpack to {unpacked} bytes, the file has {size}: refused, as a checkpoint does not shrink so "
            "far. If you trust it, load it yourself with torch.load and pass the state dict"
        )


def _is_as_it_is(record: zipfile.ZipInfo) -> bool:
    return record.compress_type == zipfile.ZIP_STORED and not record.flag_bits & 1  # 1: encrypted


def _check_places(archive: zipfile.ZipFile, records: list[zipfile.ZipInfo]) -> None:
    """Check that every record lies between its header and the next one's, where a map would read it."""
    file = archive.fp
    assert file is not None
    ends = [*sorted(record.header_offset for record in records)[1:], archive.start_dir]
    for record, end in zip(sorted(records, key=lambda record: record.header_offset), ends, strict=True):
        file.seek(record.header_offset)
        magic, name, extra = struct.unpack("<4s22xHH", file.read(30))
        start = record.header_offset + 30 + name + extra
        if magic != b"PK\x03\x04" or start + record.file_size > end:
            raise UnsafeError(
                f"not a complete file of torch.save (truncated or corrupt): the record {record.filename!r} overlaps "
                "another"
            )


class _Bounded:
    """A file that gives up where a pickle is longer than that of any checkpoint."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._steps, self._bytes = file, MOST_STEPS, MOST_PICKLED

    def read(self, size: int) -> bytes:
        self._steps, self._bytes = self._steps - 1, self._bytes - size
        if self._steps < 0 or self._bytes < 0:
            raise UnsafeError("its pickle is longer than that of any checkpoint")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(1024)


class _Inert:
    """Stands for whatever a pickle names; does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "_Inert":
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    append = extend = add = update = __setstate__


class _Allocating(_Inert):
    """Stands for what allocates as much as it is told: bytearray(n), torch.Tensor(n)."""

    def __new__(cls, *args: Any, **_: Any) -> "_Allocating":
        if any(isinstance(arg, int) and arg > MOST_PICKLED for arg in _numbers(args)):
            raise UnsafeError("its pickle allocates memory that holds no weights: refused")
        return object.__new__(cls)


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how deep it is."""

    depth: int

    @classmethod
    def of(cls, items: Any) -> "_Tuple":
        made = cls(items)
        made.depth = 1 + max((item.depth for item in made if isinstance(item, _Tuple)), default=0)
        if made.depth > _DEEPEST:
            raise UnsafeError(f"its pickle nests more than {_DEEPEST} tuples")
        return made


class _Scanner(pickle._Unpickler):
    """Follows a pickle and notes its storages; the one of the standard library that is written in C trusts sizes."""

    dispatch: ClassVar[dict[int, Any]] = {code: pickle._Unpickler.dispatch[code] for code in _ALLOWED}
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    stack: list[Any]

    def __init__(self, file: _Bounded) -> None:
        super().__init__(file, encoding="utf-8")
        self.stored: list[Stored] = []

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "torch" and name.endswith("Storage"):
            dtype = torch.serialization.StorageType(name).dtype if name not in _UNTYPED else torch.uint8
            return type(name, (_Allocating,), {"itemsize": dtype.itemsize})
        return _Allocating if name == "bytearray" or (module, name[-6:]) == ("torch", "Tensor") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] in ("storage", b"storage"):
            kind, key, numel = pid[1], pid[2], pid[4]
            self.stored.append(Stored(str(key), int(numel) * kind.itemsize))
        return _Inert()

    def _load_tuple(self) -> None:
        items = self.pop_mark()  # which changes where to append
        self.append(_Tuple.of(items))

    def _load_last(self, count: int) -> None:
        self.stack[-count:] = [_Tuple.of(self.stack[-count:])]

    dispatch[_CODES["TUPLE"]] = _load_tuple
    dispatch[_CODES["TUPLE1"]] = lambda self: self._load_last(1)
    dispatch[_CODES["TUPLE2"]] = lambda self: self._load_last(2)
    dispatch[_CODES["TUPLE3"]] = lambda self: self._load_last(3)


def _numbers(args: tuple[Any, ...]) -> Iterator[Any]:
    for arg in args:
        yield from arg if isinstance(arg, (tuple, list)) else (arg,)
