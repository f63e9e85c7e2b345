"""A checkpoint read back and verified, and whether and how a run goes on from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # Orbax's own kind of path

from resnet_spec import ClassifierSpec, Preprocessing
from resnet_spec.checkpoints import (
    ARRAY_ITEMS,
    EMA,
    MODEL,
    OPTIMIZER,
    DamageError,
    Documents,
    check_readable,
    patient_loops,
    read_documents,
    shorten,
)
from train.step.optimizer import fill_state, named_state
from train.step.train_step import TrainState

_SHOWN = 3  # names of one kind of problem

Items = dict[str, dict[str, Any]]  # of NumPy arrays, by item and name


@dataclass(frozen=True)
class SavedState:
    """A checkpoint as it was written."""

    step: int
    documents: Documents
    items: Items

    @property
    def is_imported(self) -> bool:
        """Whether these are weights alone, from which a run starts."""
        return self.step == 0 and OPTIMIZER not in self.items


def read(place: Path) -> SavedState:
    """A checkpoint's folder, verified; those of older versions hold no checksums.

    Raises:
        DamageError: it is not what was written. OSError: it cannot be read.
    """
    documents = read_documents(place)
    try:
        with patient_loops():
            items = {name: _read_arrays(place / name) for name in documents.array_items}
    except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
        check_readable(place)
        raise DamageError(shorten(error)) from error
    documents.verify(items)
    return SavedState(int(place.name), documents, items)


def as_items(state: TrainState) -> Items:
    """A state as named arrays on the host, item by item."""
    items = {
        MODEL: {**state.params, **state.statistics},
        OPTIMIZER: named_state(state.optimizer),
        **({} if state.ema is None else {EMA: state.ema}),
    }
    return jax.tree.map(np.asarray, items)


def find_misfits(
    saved: SavedState, classifier: ClassifierSpec, preprocessing: Preprocessing, fresh: TrainState
) -> list[str]:
    """Why a run of this model and data that starts from `fresh` cannot go on from `saved`.

    Names, shapes and dtypes must be the same; weights alone may also be of a narrower dtype.
    """
    description = saved.documents.description
    problems = [
        *_compare_models(description, classifier),
        *(
            f"it {problem}: import the weights with --preprocessing none to go on with these"
            for problem in compare_normalisations(description.get("preprocessing"), preprocessing)
        ),
        *(
            f"it {problem}"
            for problem in compare_classes(description.get("preprocessing"), preprocessing)
        ),
    ]
    seed = saved.documents.progress.get("seed")
    if seed not in (None, int(fresh.seed)):
        problems.append(f"the seed is {seed}, not {int(fresh.seed)}")
    wanted = _shapes(fresh)
    if saved.is_imported:
        wanted = {MODEL: wanted[MODEL]}
    for item in ARRAY_ITEMS:
        if (item in saved.items) != (item in wanted):
            problems.append(f"{item} is {'missing' if item in wanted else 'left over'}")
        elif item in wanted:
            can_hold = _can_widen if saved.is_imported else np.dtype.__eq__
            problems += [
                f"{item}: {problem}"
                for problem in _compare_arrays(saved.items[item], wanted[item], can_hold)
            ]
    return problems


def fill(fresh: TrainState, saved: SavedState) -> TrainState:
    """The saved state in the form of `fresh`, on the host; there must be no misfit.

    Imported weights have neither optimizer nor average: those are as at the start of a run.
    """
    shapes = _shapes(fresh)[MODEL]
    model = {name: saved.items[MODEL][name].astype(a.dtype) for name, a in shapes.items()}
    optimizer, ema = jax.device_get(fresh.optimizer), None
    if OPTIMIZER in saved.items:
        optimizer = fill_state(optimizer, saved.items[OPTIMIZER])
    if fresh.ema is not None:
        found = model if saved.is_imported else saved.items[EMA]
        ema = {name: found[name].copy() for name in fresh.ema}
    skipped = saved.documents.progress.get("skipped", 0)
    arrays: dict[str, Any] = {  # of NumPy, which the state's annotations do not say
        "step": np.asarray(saved.step, fresh.step.dtype),
        "seed": np.asarray(jax.device_get(fresh.seed)),
        "skipped": np.asarray(skipped, fresh.skipped.dtype),
        "params": {name: model[name] for name in fresh.params},
        "statistics": {name: model[name] for name in fresh.statistics},
        "optimizer": optimizer,
        "ema": ema,
    }
    return TrainState(**arrays)


def _read_arrays(folder: Path) -> dict[str, Any]:
    """An item's arrays in their own dtypes; by its handler, which waits for no other process."""
    handler, place = ocp.PyTreeCheckpointHandler(), epath.Path(folder)
    tree: Any = dict(handler.metadata(place).tree)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return dict(handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy)))


def _shapes(state: TrainState) -> Items:
    """Arrays as `as_items` has them, without memory of their own nor a copy from the devices."""
    return as_items(jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), state))


def _compare_models(description: Mapping[str, Any], classifier: ClassifierSpec) -> list[str]:
    try:
        found = ClassifierSpec.from_json(description)
    except ValueError as error:
        return [f"its description is of another version: {error}"]
    if found == classifier:
        return []
    pairs = {
        name: (value, getattr(classifier.network, name))
        for name, value in vars(found.network).items()
    }
    pairs |= {n: (getattr(found, n), getattr(classifier, n)) for n in ("num_classes", "head_bias")}
    different = [f"{n} {one}, not {other}" for n, (one, other) in pairs.items() if one != other]
    return [f"it is of another model: {', '.join(different)}"]


def compare_normalisations(found: Mapping[str, Any] | None, here: Preprocessing) -> list[str]:
    """Where what weights say of their images (as JSON, if they do) differs from those here."""
    if found is None or (found["mean"], found["std"]) == (list(here.mean), list(here.std)):
        return []
    return [
        f"was trained on images of mean {found['mean']} and standard deviation {found['std']}, "
        f"this data set is normalised by {list(here.mean)} and {list(here.std)}"
    ]


def compare_classes(found: Mapping[str, Any] | None, here: Preprocessing) -> list[str]:
    """Where the classes that weights say they have (as JSON, if they do) differ from those here."""
    names = (found or {}).get("class_names")
    if None in (names, here.class_names) or tuple(names or ()) == here.class_names:
        return []
    return [f"has the classes {_list(names or ())}, not {_list(here.class_names or ())}"]


def _compare_arrays(
    found: Mapping[str, Any], wanted: Mapping[str, Any], can_hold: Callable[[Any, Any], bool]
) -> list[str]:
    """One sentence for each kind of problem, with some of the names."""
    both = [name for name in wanted if name in found]
    misshapen = [n for n in both if found[n].shape != wanted[n].shape]
    mistyped = [n for n in both if not can_hold(wanted[n].dtype, found[n].dtype)]
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "left over": [name for name in found if name not in wanted],
        "of another shape": [f"{n} {found[n].shape}, not {wanted[n].shape}" for n in misshapen],
        "of another dtype": [f"{n} {found[n].dtype}, not {wanted[n].dtype}" for n in mistyped],
    }
    return [f"{len(ones)} {kind} ({_list(ones)})" for kind, ones in kinds.items() if ones]


def _can_widen(wanted: np.dtype, found: np.dtype) -> bool:
    """Whether every value of `found` is one of `wanted`."""
    return jax.numpy.promote_types(found, wanted) == wanted


def _list(names: Any) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
