"""Where encoded images come from: a prepared tensorflow-datasets folder, or folders of images."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.errors import UserError

try:
    import resource
except ModuleNotFoundError:  # not on Windows
    resource = None

_OPEN_FILES = 4096
TESTS = ("test", "val", "validation")
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif"),
        *(".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm"),
    )
)
_MOST_NAMES = 10  # in one sentence


class Source(Protocol):
    """Encoded images by index, and the names of their classes in the order of the labels."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The file's content and the label; raises anything if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """A name to find the image by, such as its file's."""
        ...


class Part:
    """Some images of a source, in another order."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        self.class_names = source.class_names
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> tuple[bytes, int]:
        return self._source.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))


# What is said of a file that cannot be opened or read, or that lacks its end. Of one record, which
# is a damaged image, something else is said.
_OF_FILES = (
    "RiegeliPostscript",
    *map(os.strerror, (errno.ENOENT, errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN)),
    *map(os.strerror, (errno.EMFILE, errno.ENFILE)),
)


class TfdsSource:
    """A split of a prepared tensorflow-datasets folder; UserError if it cannot be read."""

    def __init__(self, name: str, split: str, data_dir: Path | None):
        with explaining(name, split, data_dir):
            import tensorflow_datasets as tfds

            # tfds decodes a record to NumPy arrays in three times the time that parsing it takes
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = open_tfds(name, split, data_dir, deserialize_method=raw)
            self.class_names = tuple(self._records.dataset_info.features["label"].names)
        self._split = split
        _allow_open_files()

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int]:
        try:
            fields = self._fields(index)
        except RuntimeError as error:  # array_record's, whatever happened
            if not any(text in str(error) for text in _OF_FILES):
                raise
            raise OSError(f"{self._split} cannot be read: {error}") from error
        return fields["image"].bytes_list.value[0], fields["label"].int64_list.value[0]

    def name(self, index: int) -> str:
        try:
            return self._fields(index)["file_name"].bytes_list.value[0].decode()
        except Exception:  # the record is damaged, or has no such field
            return f"{self._split}[{index}]"

    def _fields(self, index: int) -> Any:
        from tensorflow_datasets.proto import tf_example_pb2

        # the class is made when the module is imported
        example = tf_example_pb2.Example.FromString(self._records[index])  # type: ignore[attr-defined]
        return example.features.feature


def _allow_open_files() -> None:
    """ImageNet has 1,024 files, which stay open; often a process may open no more than that."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_tfds(name: str, split: str | None, data_dir: Path | None, **options: Any) -> Any:
    """The records of a split, a dict of all splits for None; any Exception if missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    place = find_data_dir(data_dir)
    return tfds.data_source(
        name, split=split, data_dir=place, download=False, try_gcs=False, **options
    )


def find_data_dir(data_dir: Path | None) -> Path:
    """Where prepared data sets are: `data_dir`, else TFDS_DATA_DIR, else tfds' default."""
    place = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return at_home(Path(place))


def at_home(path: Path) -> Path:
    """The path with `~` replaced by the home directory; UserError if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from error


@contextlib.contextmanager
def explaining(name: str, split: str, data_dir: Path | None) -> Iterator[None]:
    """Turns any error of tfds, which raises a dozen kinds for missing data, into a UserError."""
    place = find_data_dir(data_dir)
    way_on = (
        f"prepare it there by `resnet-train prepare {name} --data-dir {place}`, or name its folder "
        "by --data-dir or TFDS_DATA_DIR"
    )
    if not (place / name).is_dir():  # tfds would report file formats instead
        raise UserError(f"there is no folder {place / name}: {way_on}")
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        if reason.endswith(":"):  # which announces a list
            reason = reason.rpartition(". ")[0] or reason[:-1]
        raise UserError(
            f"{name} ({split}) cannot be read from {place}: {way_on} "
            f"({type(error).__name__}: {reason})"
        ) from error


class FolderSource:
    """The images of one split of a folder, class by class, sorted by name."""

    def __init__(self, root: Path, files: dict[str, list[str]]):
        self.class_names = tuple(sorted(files))
        self._root = root
        self._names = [name for kind in self.class_names for name in files[kind]]
        self._labels = [
            label for label, kind in enumerate(self.class_names) for _ in range(len(files[kind]))
        ]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> tuple[bytes, int]:
        return (self._root / self._names[index]).read_bytes(), self._labels[index]

    def name(self, index: int) -> str:
        return self._names[index]


def open_folder(
    root: Path, *, needs_train: bool = True, needs_test: bool
) -> tuple[FolderSource, FolderSource | None, str]:
    """The images to train on, those to test on (None if not needed), and the test folder's name.

    PATH/train and PATH/test hold a folder for each class, which may have subfolders and links;
    hidden files are ignored. Without train/, if it is not needed, test/ defines the classes.

    Raises:
        UserError: lists everything that is missing or does not fit.
    """
    if not root.is_dir():
        raise UserError(f"--data folder:{root}: there is no such folder")
    splits = {"train": _list_classes(root, "train")}
    problems = []
    if needs_train and not splits["train"]:
        problems.append("train/ holds no classes, which are folders of images")
    test = _find_test(root, set(splits["train"])) if needs_test else ""
    if test:
        splits[test] = _list_classes(root, test)
    elif needs_test:
        problems.append(
            f"none of {', '.join(f'{name}/' for name in TESTS)} holds classes to test on: make "
            "one, or hold out a part of train/ by --validation-size"
        )
    problems += [
        problem for name in splits if splits[name] for problem in _wrong_classes(name, splits)
    ]
    if problems:
        raise UserError(f"--data folder:{root}: {'; '.join(problems)}")
    splits["train"] = splits["train"] or {name: [] for name in splits[test]}
    train, *rest = (FolderSource(root, classes) for classes in splits.values())
    return train, rest[0] if rest else None, test


def _find_test(root: Path, classes: set[str]) -> str:
    """The first test folder with these classes, else with any: a test/ without labels has none."""
    first = ""
    for name in TESTS:
        found = {folder.name for folder in _list_folders(root / name)}
        if found and found == classes:
            return name
        first = first or (name if found else "")
    return first


def _list_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and _is_shown(p.name))
    except OSError as error:
        _refuse(error)
        raise


def _list_classes(root: Path, split: str) -> dict[str, list[str]]:
    """Each class with its images' paths below the root; hidden and other files are left out."""
    return {folder.name: _list_images(root, folder) for folder in _list_folders(root / split)}


def _list_images(root: Path, folder: Path) -> list[str]:
    prefix, found = len(os.path.join(root, "")), []
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if _is_shown(name) and not _leads_back(place, name)]
        found += [
            os.path.join(place, name)[prefix:]
            for name in names
            if _is_shown(name) and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return sorted(found)


def _refuse(error: OSError) -> None:
    """An unreadable folder must not be mistaken for an empty one."""
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _leads_back(place: str, name: str) -> bool:
    """Whether a folder is a link to one that contains it: walking it would never end."""
    path = os.path.join(place, name)
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    return any(os.path.realpath(above) == target for above in (place, *Path(place).parents))


def _is_shown(name: str) -> bool:
    return not name.startswith(".")


def _wrong_classes(split: str, splits: dict[str, dict[str, list[str]]]) -> list[str]:
    classes, problems = splits[split], []
    if empty := [name for name, images in classes.items() if not images]:
        problems.append(f"no images in {split}/: {_shorten(empty)}")
    others = set().union(*splits.values())
    if len(classes) == 1:
        problems.append(
            f"{split}/ holds only one class, {next(iter(classes))}: each class needs a folder"
        )
    if missing := sorted(others - set(classes)):
        problems.append(f"no folder in {split}/ for the classes {_shorten(missing)}")
    return problems


def _shorten(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
