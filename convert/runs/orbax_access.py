"""Reads and writes checkpoints by Orbax, which is imported only when a function needs it."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.runs.disk_format import (
    DESCRIPTION,
    PROGRESS,
    DamageError,
    Documents,
    Items,
    check_readable,
    seal,
    shorten,
)


def read_items(
    place: Path, documents: Documents, names: Iterable[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of a checkpoint's folder by item and name, in their own dtypes, verified.

    Raises:
        DamageError: one is not what was written. OSError: one cannot be read.
    """
    try:
        with patient_loops():
            items = {name: read_arrays(place.resolve() / name) for name in names}
    except ImportError:
        raise
    except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
        check_readable(place)
        raise DamageError(shorten(error)) from error
    documents.verify(items)
    return items


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths, joined by `/`; those of ours have no tree.

    Uses the item's handler: a manager waits for other processes, and may refuse other items.
    """
    import jax
    import orbax.checkpoint as ocp
    from etils import epath  # Orbax's own kind of path

    handler, place = ocp.PyTreeCheckpointHandler(), epath.Path(folder)
    tree: Any = dict(handler.metadata(place).tree)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restored = handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def save_arguments(items: Items, description: Mapping[str, Any], sealed: Mapping[str, Any]) -> Any:
    """What a `CheckpointManager` saves as one step; `sealed` is the progress."""
    import orbax.checkpoint as ocp

    return ocp.args.Composite(
        **{name: ocp.args.StandardSave(dict(arrays)) for name, arrays in items.items()},
        **{DESCRIPTION: ocp.args.JsonSave(dict(description))},
        **{PROGRESS: ocp.args.JsonSave(dict(sealed))},
    )


def write_step(
    folder: Path,
    step: int,
    items: Items,
    description: Mapping[str, Any],
    progress: Mapping[str, Any],
) -> None:
    """Writes one checkpoint into a folder of checkpoints, and waits until it is on disk."""
    import orbax.checkpoint as ocp

    arguments = save_arguments(items, description, seal(progress, description, items))
    log_no_tracebacks()
    with (
        patient_loops(),
        contextlib.closing(ocp.CheckpointManager(folder.resolve())) as manager,
    ):
        manager.save(step, args=arguments)
        manager.wait_until_finished()
        manager.check_for_errors()


@contextlib.contextmanager
def patient_loops() -> Iterator[None]:
    """Makes Orbax's event loops finish their tasks before they close.

    Orbax reads and writes all arrays at once. When one fails it closes the event loop, and each of
    the others prints a traceback, at any time.
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


def log_no_tracebacks() -> None:
    """Stops Orbax logging tracebacks of errors that it also raises."""
    logging.getLogger("absl").addFilter(_is_not_raised)


def _is_not_raised(record: logging.LogRecord) -> bool:
    return record.exc_info is None or "orbax" not in record.pathname
