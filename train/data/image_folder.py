"""A folder of images: PATH/train and PATH/test, and in each a folder for every class.

A class's images may be deeper within its folder, and where links lead to; what is hidden is not
looked at.
"""

import os
from pathlib import Path

from train.errors import UserError

TESTS = ("test", "val", "validation")
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif"),
        *(".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm"),
    )
)
_MOST_NAMES = 10  # in one sentence


class FolderSource:
    """The images of one split, class by class, each class's files in the order of their names."""

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
    """The images to train on; those to test on, where that is needed; and their folder's name.

    Without train/, where it is not needed, there are no images to train on, and test/ says the
    classes.

    Raises:
        UserError: what is missing or does not fit; all of it at once.
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
    """The first that holds these classes, or else any: a test/ whose labels are secret has none."""
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
    """Each class, and its images' paths below the root; what is hidden or no image is left out."""
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
    """A folder that cannot be read is not one without images."""
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _leads_back(place: str, name: str) -> bool:
    """Whether a folder in a place is a link to one that it is in: there would be no end to it."""
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
            f"{split}/ holds one class only, {next(iter(classes))}: each needs a folder"
        )
    if missing := sorted(others - set(classes)):
        problems.append(f"no folder in {split}/ for the classes {_shorten(missing)}")
    return problems


def _shorten(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
