"""Training states as checkpoints have them: named, read back, compared with a run, filled in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from convert.runs.disk_format import (
    ARRAY_ITEMS,
    EMA,
    MODEL,
    MOMENTUM,
    OPTIMIZER,
    PREPROCESSING,
    SCHEDULE_STEP,
    Documents,
    read_documents,
)
from convert.runs.orbax_access import read_items
from resnet_spec import ClassifierSpec, Preprocessing
from train.step.train_step import TrainState

_ROUNDING = 5.1e-5  # of a mean or a deviation in four digits, in units of 0 to 1
_SHOWN = 3  # names of one kind of problem

Items = dict[str, dict[str, Any]]  # NumPy arrays by item and name


@dataclass(frozen=True)
class SavedState:
    """A checkpoint as it was written."""

    step: int
    documents: Documents
    items: Items

    @property
    def is_imported(self) -> bool:
        """Whether these are weights alone, to start a run from."""
        return self.step == 0 and OPTIMIZER not in self.items


def read(place: Path) -> SavedState:
    """A checkpoint's folder, verified; those of older versions hold no checksums.

    Raises:
        DamageError: it is not what was written. OSError: it cannot be read.
    """
    documents = read_documents(place)
    return SavedState(
        int(place.name), documents, read_items(place, documents, documents.array_items)
    )


def as_items(state: TrainState) -> Items:
    """A state as named arrays on the host, item by item."""
    items = {
        MODEL: {**state.params, **state.statistics},
        OPTIMIZER: named_state(state.optimizer),
        **({} if state.ema is None else {EMA: state.ema}),
    }
    return jax.tree.map(np.asarray, items)


def named_state(state: Any) -> dict[str, Any]:
    """The state of `train.step.optimizer.make_optimizer` by name, in whatever order optax has it.

    `momentum.<parameter>`: SGD's or LARS's momentum buffer, of the parameter's shape;
    `schedule_step`: the step whose learning rate comes next.
    """
    buffers = optax.tree.get(state, "trace", default={})
    named = {f"{MOMENTUM}{name}": buffer for name, buffer in buffers.items()}
    named[SCHEDULE_STEP] = optax.tree.get(state, "count")
    assert len(named) == len(jax.tree.leaves(state)), "a part of the optimizer has no name"
    return named


def fill_state(fresh: Any, named: Mapping[str, Any]) -> Any:
    """The inverse of `named_state`: a state of the form of `fresh` with these arrays."""
    values: dict[str, Any] = {"count": named[SCHEDULE_STEP]}
    buffers = optax.tree.get(fresh, "trace", default=None)
    if buffers is not None:
        values["trace"] = {name: named[f"{MOMENTUM}{name}"] for name in buffers}
    return optax.tree.set(fresh, **values)


def find_misfits(
    saved: SavedState, classifier: ClassifierSpec, preprocessing: Preprocessing, fresh: TrainState
) -> list[str]:
    """Why a run of this model and data, begun with `fresh`, cannot go on from `saved`.

    Names, shapes and dtypes must be the same; weights alone may have a narrower dtype.
    """
    images = saved.documents.description.get(PREPROCESSING)
    problems = [
        *_compare_models(saved.documents.description, classifier),
        *(
            f"it {problem}: import the weights with --preprocessing none to go on with these"
            for problem in compare_normalisations(images, preprocessing)
        ),
        *(f"it {problem}" for problem in compare_classes(images, preprocessing)),
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
    """The saved state in the form of `fresh`, on the host; `find_misfits` must have found none.

    Imported weights have neither optimizer nor average: these start as in a new run.
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
    arrays: dict[str, Any] = {  # of NumPy, unlike the annotations of TrainState
        "step": np.asarray(saved.step, fresh.step.dtype),
        "seed": np.asarray(jax.device_get(fresh.seed)),
        "skipped": np.asarray(skipped, fresh.skipped.dtype),
        "params": {name: model[name] for name in fresh.params},
        "statistics": {name: model[name] for name in fresh.statistics},
        "optimizer": optimizer,
        "ema": ema,
    }
    return TrainState(**arrays)


def _shapes(state: TrainState) -> Items:
    """Arrays as from `as_items`, without memory of their own or a copy from the devices."""
    return as_items(jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), state))


def _compare_models(description: Mapping[str, Any], classifier: ClassifierSpec) -> list[str]:
    try:
        found = ClassifierSpec.from_json(description)
    except ValueError as error:
        return [f"its description is of another version: {error}"]
    one, other = (
        {**vars(c.network), "num_classes": c.num_classes, "head_bias": c.head_bias}
        for c in (found, classifier)
    )
    different = [f"{n} {one[n]}, not {other[n]}" for n in one if one[n] != other[n]]
    return [f"it is of another model: {', '.join(different)}"] if different else []


def compare_normalisations(found: Mapping[str, Any] | None, here: Preprocessing) -> list[str]:
    """How the normalisation recorded with weights (JSON or None) differs from that here.

    Numbers that are rounded to four digits are the same: 0.2470 and 0.24703 differ by less than a
    hundredth of a grey level.
    """
    numbers = [] if found is None else [*found["mean"], *found["std"]]
    ours = [*here.mean, *here.std]
    if found is None or (len(numbers) == len(ours) and np.allclose(numbers, ours, 0, _ROUNDING)):
        return []
    return [
        f"was trained on images of mean {found['mean']} and standard deviation {found['std']}, "
        f"this data set is normalised by {list(here.mean)} and {list(here.std)}"
    ]


def compare_sizes(
    found: Mapping[str, Any] | None, here: Preprocessing, *, is_resized: bool
) -> list[str]:
    """How size, crop and interpolation recorded with weights (JSON or None) differ from those here.

    Images that are not resized have a size alone.
    """
    if found is None:
        return []
    said = Preprocessing.from_json(found)
    if (is_same := said.image_size == here.image_size) and not is_resized:
        return []
    if is_same and (said.shorter_side, said.interpolation) == (
        here.shorter_side,
        here.interpolation,
    ):
        return []
    one, other = (
        f"{p.image_size} pixels of {p.shorter_side}, {p.interpolation}" for p in (said, here)
    )
    return [f"is for pictures of {one}, here they are of {other}"]


def unsaid(here: Preprocessing) -> str:
    """What is assumed of weights that come without a preprocessing, where the user states none."""
    return (
        "does not say how its images were prepared; assumed are this data set's own mean "
        f"{list(here.mean)} and standard deviation {list(here.std)} (--preprocessing says others)"
    )


def compare_classes(found: Mapping[str, Any] | None, here: Preprocessing) -> list[str]:
    """How the class names recorded with weights (JSON or None) differ from those here."""
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
