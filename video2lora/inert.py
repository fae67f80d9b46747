"""A `.pt` file of someone else -> tensors and plain values. Nothing in the file is run, nothing it names is imported.

A pickle is a program. Released checkpoints hold, beside tensors, objects of packages that a user of ours need not have, and must not be
made to import. PyTorch's own reader (`weights_only`) builds tensors and plain values alone; here it is told to put an `Inert` in place of
an object of the packages the caller knows, and the names a file asks for are read before anything of it is: one outside those packages is
refused by name. What other code of the process has declared safe for `torch.load` is not safe here.

Tensors are mapped, not read: pages come from the disk when they are used and are never held twice, and writing to them leaves the file as
it is. The checksum of every part is compared first, because a mapped file is not checked again. Shape and dtype of what is read are the
caller's to check.
"""

import io
import pickle  # noqa: TID251  for the name of its error
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import serialization

# What a damaged zip or pickle makes zipfile and PyTorch raise: an opcode may find an empty stack, a number that overflows, half a record.
MALFORMED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    SafetensorError,
    OSError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    ValueError,
)
HARMLESS = frozenset(  # what PyTorch itself names in the pickle of tensors and plain values
    {"collections.OrderedDict", "builtins.set", "__builtin__.set", "torch.FloatStorage", "torch.BFloat16Storage", "torch.LongStorage"}
)
N_BYTES_SEARCHED = 2**20  # of a bare pickle, for the names it asks for; they matter to the message alone
N_NAMES_SHOWN = 5


class Inert:
    """Stands where the file has an object of a package: keeps what that was made of, and does nothing."""

    given: tuple[Any, ...]
    state: Any

    def __new__(cls, *given: Any) -> "Inert":
        made = super().__new__(cls)
        made.given, made.state = given, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_inert(path: Path, *, packages: Collection[str]) -> Any:
    """The pickled value of a file that `torch.save` wrote, objects of `packages` (top-level names) as Inert; tensors mapped, on the CPU.

    Raises ValueError naming the file: it is missing, no zip, damaged, or asks for a name of another package.
    """
    if not path.is_file():
        raise ValueError(f"{path}: " + ("is a folder, expected a .pt file" if path.is_dir() else "there is no such file"))
    _check_zip(path, packages)
    with _nothing_safe(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of pickle protocols it does not write, and reads or refuses them
        try:
            names = serialization.get_unsafe_globals_in_checkpoint(path)
        except MALFORMED as error:
            program = _pickle_of(path)
            what = f"cannot read the pickle in it ({_cause(error)}{_protocol(program)})"
            raise ValueError(f"{path}: {what}{_asked(program, packages)}") from error
        if strange := _outside(names, packages):
            raise ValueError(
                f"{path}: asks for {_listed(strange)}, and is refused: nothing of it was run or imported. Expected tensors, plain values "
                f"and objects of {', '.join(sorted(packages))}"
            )
        try:
            with serialization.safe_globals([(Inert, name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251  nothing in it is run
        except MALFORMED as error:
            raise ValueError(f"{path}: cannot read the pickle in it ({_cause(error)})") from error


def _check_zip(path: Path, packages: Collection[str]) -> None:
    """Raises ValueError where the file is not the zip that `torch.save` writes, whole and with the bytes that it was written with."""
    expected = "expected the zip file that torch.save writes (PyTorch 1.6 and later)"
    try:
        with path.open("rb") as file:
            start = file.read(N_BYTES_SEARCHED)
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened: {error.strerror}") from error
    if not start:
        raise ValueError(f"{path}: is empty, {expected}")
    if not start.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path}: is no zip file, {expected}{_asked(start, packages)}")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > path.stat().st_size
            damaged = None if packed else archive.testzip()
    except MALFORMED as error:
        raise ValueError(f"{path}: is damaged or cut short ({_first_line(str(error))}); copy it again") from error
    if packed:
        raise ValueError(f"{path}: its parts are compressed or overlap, {expected}")
    if damaged is not None:
        raise ValueError(f"{path}: is damaged: the bytes of {damaged!r} are not those it was written with (CRC-32); copy it again")


def _pickle_of(path: Path) -> bytes:
    """The program of a zip checkpoint; empty where there is none."""
    with zipfile.ZipFile(path) as archive:
        inside = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(inside[0]) if inside else b""


def _protocol(program: bytes) -> str:
    return f", of protocol {program[1]}; torch.save writes 2" if program[:1] == b"\x80" and program[1] > 2 else ""


def _asked(program: bytes, packages: Collection[str]) -> str:
    """What a message says of a pickle that PyTorch's reader does not take: the names it asks for, told without running it."""
    names = {name for name in _names(program) if name not in HARMLESS and not name.startswith("torch._utils._rebuild")}
    strange = _outside(names, packages)
    return f"; it asks for {_listed(strange)}, which was not run" if strange else ""


def _names(program: bytes) -> Iterator[str]:
    """Every global that a chain of pickles names, whatever the protocol, as far as it can be followed."""
    rest = io.BytesIO(program)
    try:
        while rest.tell() < len(program):
            pushed: list[str | None] = []  # texts among the values pushed: STACK_GLOBAL takes the last two
            memo: dict[int, str | None] = {}
            for opcode, argument, _ in pickletools.genops(rest):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(text or "?" for text in pushed[-2:])
                elif opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    memo[len(memo) if argument is None else argument] = pushed[-1] if pushed else None
                elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                    pushed.append(memo.get(argument) if isinstance(argument, int) else None)
                elif opcode.stack_after and not opcode.stack_before:
                    pushed.append(argument if isinstance(argument, str) else None)
                elif opcode.stack_after:
                    pushed.append(None)  # what is made of others is no text
    except (ValueError, IndexError, struct.error):  # no pickle, or its end is missing
        return


def _outside(names: Collection[str], packages: Collection[str]) -> list[str]:
    return sorted({name for name in names if name.partition(".")[0] not in packages})


def _listed(names: list[str]) -> str:
    """Names of the file as text that a terminal cannot be tricked with."""
    more = f" and {len(names) - N_NAMES_SHOWN} more" if len(names) > N_NAMES_SHOWN else ""
    return ", ".join(ascii(name[:80]) for name in names[:N_NAMES_SHOWN]) + more


def _first_line(text: str) -> str:
    return ascii((text.strip() or "no more is known").splitlines()[0][:200])


def _cause(error: BaseException) -> str:
    """PyTorch's messages begin with advice on how to run the file nevertheless; what is wrong stands in their last paragraph but one."""
    paragraphs = [part for part in str(error).split("\n\n") if part.strip() and "documentation of torch.load" not in part]
    return _first_line(paragraphs[-1] if paragraphs else type(error).__name__)


@contextmanager
def _nothing_safe() -> Iterator[None]:
    """Inside, `torch.load` builds what PyTorch itself allows and nothing that other code of this process has allowed besides."""
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)
