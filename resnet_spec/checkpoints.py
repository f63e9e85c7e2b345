"""What the folder of a checkpoint holds, and the checksums that tell whether it still does.

Five items. `model`: parameters and statistics by name; `optimizer`: momentum by the parameter's
name, and the step of the schedule; `ema`: the average of what is in `model`, where the run keeps
one; `description`: which network they are, and the preprocessing of its images; `progress`: seed,
steps left out, test error, seconds of training, and the checksums of all. Who trains and who
converts write and read them by Orbax, which has no checksums of its own: a flipped bit in an array
comes back silently.

A checksum is SHA-256, as every Python has it, no two arrays share one by accident, and processors
compute it about as fast as disks read (1.1 GB/s measured where CRC-32 has 1.9 and BLAKE2 0.6).
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL, OPTIMIZER, EMA = "model", "optimizer", "ema"
ARRAY_ITEMS = (MODEL, OPTIMIZER, EMA)
DESCRIPTION, PROGRESS = "description", "progress"

_CONTENTS = "_CHECKPOINT_METADATA"  # Orbax's own list of the items
_JSON = "metadata"  # Orbax's name of the file of a JSON item
_DIGITS = 32  # kept of a checksum: 128 bits
_SHOWN = 3  # arrays of one damaged checkpoint
_PIECE = 2**24  # bytes read at a time
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # something else is there
_REASON = (80, 140)  # characters at either end of an error of TensorStore's, which are long

Items = Mapping[str, Mapping[str, Any]]


class DamageError(ValueError):
    """A checkpoint is not as it was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Documents:
    """What a checkpoint says about itself.

    Attributes:
        array_items: names of the items that are arrays.
        progress: `seal`'s; empty in checkpoints of older versions, which cannot be verified.
    """

    description: Mapping[str, Any]
    array_items: tuple[str, ...]
    progress: Mapping[str, Any]

    def verify(self, items: Items) -> None:
        """Raises a DamageError unless the arrays of some items are those that were written."""
        damage = [
            f"{item}: {problem}"
            for item, arrays in items.items()
            if self.progress
            for problem in _compare(self.progress["checksums"][item], arrays)
        ]
        if damage:
            more = f"; {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
            raise DamageError("; ".join(damage[:_SHOWN]) + more)


def checksum(array: Any) -> str:
    """Of the dtype, shape and bytes of a NumPy array of any dtype, bfloat16 too."""
    shape = tuple(int(size) for size in array.shape)
    digest = hashlib.sha256(f"{array.dtype.name}{shape}".encode())
    digest.update(array.reshape(-1).view("u1"))  # in order of the axes, whatever the strides are
    return digest.hexdigest()[:_DIGITS]


def seal(
    progress: Mapping[str, Any], description: Mapping[str, Any], items: Items
) -> dict[str, Any]:
    """`progress` with a checksum of each array by item and name, and one of both documents."""
    sums = {
        item: {name: checksum(array) for name, array in arrays.items()}
        for item, arrays in items.items()
    }
    sealed = {**progress, "checksums": sums}
    return {**sealed, "checksum": _document_checksum(sealed, description)}


def read_documents(place: Path) -> Documents:
    """The documents in a checkpoint's folder, verified; they are small.

    Raises:
        DamageError: one is missing, or is not what was written.
        OSError: one cannot be read, which says nothing about what was written.
    """
    try:
        if not (place / PROGRESS).exists():
            listed = json.loads((place / _CONTENTS).read_text())["item_handlers"]
            if PROGRESS in listed:
                raise DamageError("progress is missing")
            arrays = tuple(item for item in ARRAY_ITEMS if item in listed)
            return Documents(_read_json(place, DESCRIPTION), arrays, {})
        description, progress = _read_json(place, DESCRIPTION), _read_json(place, PROGRESS)
        sealed = {key: value for key, value in progress.items() if key != "checksum"}
        if progress.get("checksum") != _document_checksum(sealed, description):
            raise DamageError("description or progress is not what was written")
        return Documents(description, tuple(progress["checksums"]), progress)
    except DamageError:
        raise
    except (*_ABSENT, ValueError, KeyError, TypeError) as error:
        raise DamageError(shorten(error)) from error


def reseal(place: Path, changes: Mapping[str, Any]) -> None:
    """Changes what a checkpoint says of its progress; its file is whole at any moment.

    Raises:
        DamageError: it is not what was written. OSError: it cannot be written.
    """
    documents = read_documents(place)
    progress = {k: v for k, v in {**documents.progress, **changes}.items() if k != "checksum"}
    sealed = {**progress, "checksum": _document_checksum(progress, documents.description)}
    temporary = place / PROGRESS / f".{_JSON}.new"
    with temporary.open("w") as file:
        file.write(json.dumps(sealed))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(place / PROGRESS / _JSON)


def check_readable(folder: Path) -> None:
    """Reads all files below a folder, for where a reader did not say why it failed.

    Raises:
        OSError: one that is there cannot be read: what is in it is not known to be damaged.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, _ABSENT):
            raise error

    for place, _, names in os.walk(folder, onerror=fail):
        for name in names:
            try:
                with (Path(place) / name).open("rb") as file:
                    while file.read(_PIECE):
                        pass
            except OSError as error:
                fail(error)


@contextlib.contextmanager
def patient_loops() -> Iterator[None]:
    """Lets Orbax end what it began.

    It reads and writes all arrays at once, and on the first that fails closes its event loop under
    the others: each would then print a traceback, at any time.
    """
    impatient = asyncio.new_event_loop
    asyncio.new_event_loop = _PatientLoop
    try:
        yield
    finally:
        asyncio.new_event_loop = impatient


class _PatientLoop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


def shorten(error: Exception) -> str:
    """The essence of an error of Orbax or TensorStore, in one line."""
    line = str(error).strip().partition("\n")[0].partition(" [source locations")[0]
    head, tail = _REASON
    line = f"{line[:head]} ... {line[-tail:]}" if len(line) > head + tail + 5 else line
    return line or type(error).__name__


def _read_json(place: Path, item: str) -> dict[str, Any]:
    content = json.loads((place / item / _JSON).read_text())
    if not isinstance(content, dict):
        raise DamageError(f"{item} is not what was written")
    return content


def _document_checksum(sealed: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    text = json.dumps([sealed, description], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _compare(sums: Mapping[str, str], arrays: Mapping[str, Any]) -> list[str]:
    missing = [f"{name} is missing" for name in sums if name not in arrays]
    left_over = [f"{name} is left over" for name in arrays if name not in sums]
    changed = [
        f"{name} is not what was written: its checksum differs"
        for name, array in arrays.items()
        if name in sums and checksum(array) != sums[name]
    ]
    return [*missing, *left_over, *changed]


def log_no_tracebacks() -> None:
    """Of what Orbax raises it logs the traceback, too, thread by thread: not from now on."""
    logging.getLogger("absl").addFilter(_is_not_raised)


def _is_not_raised(record: logging.LogRecord) -> bool:
    return record.exc_info is None or "orbax" not in record.pathname
