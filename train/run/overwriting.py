"""What a run leaves in its folder, which alone `--overwrite` deletes."""

import shutil
from pathlib import Path

_FOLDERS = ("checkpoints", "tensorboard", "profile", "wandb")
_FILES = ("result.json", "metrics.jsonl", "model.safetensors", "wandb_id")
_TOLD = ("results.json", "results.md", "curves.png", "curves.svg")  # by `resnet-train results`
_LAST = ("config.json", "seeds.json")


def delete_run(folder: Path) -> None:
    """Deletes a run, last of all what tells that it is one: whoever is interrupted can go on.

    So are those of its seeds. Other files and folders stay, other runs among them, and the folder
    itself: it may be locked, a link, or another file system.
    """
    for path in folder.glob("seed-*"):
        if path.is_dir() and not path.is_symlink():
            delete_run(path)
            if not any(path.iterdir()):
                path.rmdir()
    for name in _FOLDERS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in (*_FILES, *_TOLD, *_LAST):
        _delete(folder / f".{name}.new")
        _delete(folder / name)


def _delete(path: Path) -> None:
    """A file or a link; a folder of that name is none of a run's."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
