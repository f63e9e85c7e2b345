"""The format of a run on disk: names of files, items and arrays; documents and checksums.

A checkpoint has five items. `model`: parameters and statistics by name. `optimizer`: momentum by
the parameter's name, and the step of the schedule. `ema`: the average of what is in `model`, if the
run keeps one. `description`: the network, and the preprocessing of its images. `progress`: seed,
skipped steps, test error, seconds of training, and checksums of everything. The trainer and the
converter write and read them by Orbax, which has no checksums of its own: it does not notice a
flipped bit in an array.

A checksum is SHA-256: it is in the standard library, no two arrays share one by accident, and it is
about as fast as a disk (1.1 GB/s measured; CRC-32 has 1.9 and BLAKE2 0.6).
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.atomic import replacing

CHECKPOINTS, CONFIG = "checkpoints", "config.json"  # in the folder of a run
MODEL, OPTIMIZER, EMA = "model", "optimizer", "ema"
ARRAY_ITEMS = (MODEL, OPTIMIZER, EMA)
DESCRIPTION, PROGRESS = "description", "progress"
PREPROCESSING = "preprocessing"  # a key of the description, beside those of the classifier
MOMENTUM = "momentum."  # before a parameter's name, in the optimizer
SCHEDULE_STEP = "schedule_step"  # in the optimizer: the step whose learning rate comes next

_CONTENTS = "_CHECKPOINT_METADATA"  # Orbax's own list of the items
_JSON = "metadata"  # Orbax's name of the file of a JSON item
_DIGITS = 32  # of a checksum are kept: 128 bits
_SHOWN = 3  # arrays of one damaged checkpoint
_PIECE = 2**24  # bytes read at a time
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_REASON = (80, 140)  # characters kept at either end of a long error of TensorStore
_OF_DISKS = tuple(
    map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO))
)

Items = Mapping[str, Mapping[str, Any]]  # arrays by item and name


class DamageError(ValueError):
    """A checkpoint is not as it was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Documents:
    """What a checkpoint says about itself.

    Attributes:
        array_items: names of the items that are arrays.
        progress: as `seal` returned it; empty in checkpoints of older versions, which cannot be
            verified.
    """

    description: Mapping[str, Any]
    array_items: tuple[str, ...]
    progress: Mapping[str, Any]

    def verify(self, items: Items) -> None:
        """Raises a DamageError if arrays of these items are not those that were written."""
        if not self.progress:
            return
        damage: list[str] = []
        for item, arrays in items.items():
            sums = self.progress["checksums"][item]
            damage += [f"{item}: {name} is missing" for name in sums if name not in arrays]
            for name, array in arrays.items():
                if name not in sums:
                    damage.append(f"{item}: {name} is left over")
                elif checksum(array) != sums[name]:
                    damage.append(f"{item}: {name} is not what was written: its checksum differs")
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
    return _seal_documents({**progress, "checksums": sums}, description)


def read_documents(place: Path) -> Documents:
    """The documents in a checkpoint's folder, verified.

    Raises:
        DamageError: one is missing, or is not what was written.
        OSError: one cannot be read; this does not mean that it is damaged.
    """
    try:
        if not (place / PROGRESS).exists():
            listed = json.loads((place / _CONTENTS).read_text())["item_handlers"]
            if PROGRESS in listed:
                raise DamageError("progress is missing")
            arrays = tuple(item for item in ARRAY_ITEMS if item in listed)
            return Documents(_read_json(place, DESCRIPTION), arrays, {})
        description, progress = _read_json(place, DESCRIPTION), _read_json(place, PROGRESS)
        if progress.get("checksum") != _seal_documents(progress, description)["checksum"]:
            raise DamageError("description or progress is not what was written")
        return Documents(description, tuple(progress["checksums"]), progress)
    except DamageError:
        raise
    except (*_ABSENT, ValueError, KeyError, TypeError) as error:
        raise DamageError(shorten(error)) from error


def reseal(place: Path, changes: Mapping[str, Any]) -> None:
    """Changes entries of a checkpoint's progress; its file is whole at any moment.

    Raises:
        DamageError: it is not what was written. OSError: it cannot be written.
    """
    documents = read_documents(place)
    sealed = _seal_documents({**documents.progress, **changes}, documents.description)
    with replacing(place / PROGRESS / _JSON) as temporary:
        temporary.write_text(json.dumps(sealed))


def check_readable(folder: Path) -> None:
    """Reads all files below a folder, after a reader failed without saying why.

    Raises:
        OSError: one that exists cannot be read; this does not mean that it is damaged.
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


def shorten(error: Exception) -> str:
    """The essence of an error of Orbax or TensorStore, in one line.

    What the disk said may stand in the middle of thousands of characters: it comes first.
    """
    line = str(error).strip().partition("\n")[0].partition(" [source locations")[0]
    head, tail = _REASON
    reasons = [reason for reason in _OF_DISKS if reason in str(error)]
    line = f"{line[:head]} ... {line[-tail:]}" if len(line) > head + tail + 5 else line
    line = ": ".join([*(reason for reason in reasons if reason not in line), line])
    return line or type(error).__name__


def _read_json(place: Path, item: str) -> dict[str, Any]:
    content = json.loads((place / item / _JSON).read_text())
    if not isinstance(content, dict):
        raise DamageError(f"{item} is not what was written")
    return content


def _seal_documents(progress: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """`progress` with a checksum of both documents, instead of one that it may have."""
    unsealed = {key: value for key, value in progress.items() if key != "checksum"}
    text = json.dumps([unsealed, description], sort_keys=True)
    return {**unsealed, "checksum": hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}
