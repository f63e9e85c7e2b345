"""Where encoded images come from: a prepared tensorflow-datasets folder, or folders of files."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.errors import UserError


class Source(Protocol):
    """Encoded images by their index, and the names of their classes in the labels' order."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The file's content, and the label; any exception says that it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What a person would look for: a file's name."""
        ...


class Part:
    """Some images of a source, in an order of their own."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self.class_names = source.class_names
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> tuple[bytes, int]:
        return self._source.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))


class TfdsSource:
    """A split of a prepared tensorflow-datasets folder; TensorFlow is not needed.

    Raises:
        UserError: it is not where it was looked for.
    """

    def __init__(self, name: str, split: str, data_dir: Path | None):
        with explaining(name, split, data_dir):
            import tensorflow_datasets as tfds

            # of a record's bytes tfds makes NumPy arrays in three times the time that is needed
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = open_tfds(name, split, data_dir, deserialize_method=raw)
            self.class_names = tuple(self._records.dataset_info.features["label"].names)
        self._split = split

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int]:
        fields = self._fields(index)
        return fields["image"].bytes_list.value[0], fields["label"].int64_list.value[0]

    def name(self, index: int) -> str:
        try:
            return self._fields(index)["file_name"].bytes_list.value[0].decode()
        except Exception:  # the record itself is damaged, or it has no such field
            return f"{self._split}[{index}]"

    def _fields(self, index: int) -> Any:
        from tensorflow_datasets.proto import tf_example_pb2

        # the class is made when the module is imported
        example = tf_example_pb2.Example.FromString(self._records[index])  # type: ignore[attr-defined]
        return example.features.feature


def open_tfds(name: str, split: str | None, data_dir: Path | None, **options: Any) -> Any:
    """The records of a split, by random access; those of each split by its name where it is None.

    Raises:
        Exception: anything, where they are not there.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    place = find_data_dir(data_dir)
    return tfds.data_source(
        name, split=split, data_dir=place, download=False, try_gcs=False, **options
    )


def find_data_dir(data_dir: Path | None) -> Path:
    """Where prepared data sets are: as asked, as the environment says, or tfds' own place."""
    place = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return at_home(Path(place))


def at_home(path: Path) -> Path:
    """The path with its `~` written out.

    Raises:
        UserError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from error


@contextlib.contextmanager
def explaining(name: str, split: str, data_dir: Path | None) -> Iterator[None]:
    """Any error of tfds, which raises a dozen kinds for what is not there, as a UserError."""
    place = find_data_dir(data_dir)
    way_on = (
        f"prepare it there by `resnet-train prepare {name} --data-dir {place}`, or name its folder "
        "by --data-dir or TFDS_DATA_DIR"
    )
    if not (place / name).is_dir():  # tfds would speak of forms of files that it looked for
        raise UserError(f"there is no folder {place / name}: {way_on}")
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name} ({split}) cannot be read from {place}: {way_on} "
            f"({type(error).__name__}: {reason})"
        ) from error
