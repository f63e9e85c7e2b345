"""Groups the runs that differ only in their seed, and computes statistics over each group."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from resnet_spec import list_models
from train.config import Config, computed_fields
from train.results.collect import RecordedRun
from train.results.plan import Asked, asked_by_length, confirm
from train.results.published import DATA, Published, published

_DEVIATIONS = 2


@dataclass(frozen=True)
class Statistics:
    """Of one number over several runs. std: of the sample; None for a single run."""

    mean: float
    std: float | None
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistics":
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, min(values), max(values))


@dataclass(frozen=True)
class Group:
    """The runs of one configuration.

    Attributes:
        runs: one for each seed, sorted by seed.
        repeats: further runs of a seed; they do not count.
        options: the fields in which it differs from other groups of the same model and data, and
            what its configuration does not say: changes on the way, imported weights.
    """

    runs: tuple[RecordedRun, ...]
    repeats: tuple[RecordedRun, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def first(self) -> RecordedRun:
        return self.runs[0]

    @cached_property
    def finished(self) -> list[RecordedRun]:
        return [run for run in self.runs if run.outcome is not None]

    @property
    def unfinished(self) -> list[RecordedRun]:
        return [run for run in self.runs if run.outcome is None]

    @cached_property
    def parameters(self) -> int | None:
        return count_parameters(self.first.config)

    @property
    def whole_test_size(self) -> int | None:
        """Images of the whole test set; None for a group that was tested on other images."""
        data = DATA.get(self.first.config.data)
        return data.test_images if data is not None and self.first.test_name == "test" else None

    @property
    def is_partial(self) -> bool:
        """Whether it was tested on only a part of the test set."""
        tested, whole = self.first.test_images, self.whole_test_size
        return tested is not None and whole is not None and tested < whole

    @property
    def epochs(self) -> float:
        """As configured, or fewer if `max_steps` ends the run earlier."""
        return min(float(self.first.config.epochs), self.first.epoch(self.first.total_steps))

    @property
    def published(self) -> list[Published]:
        return published(self.first.config.data, self.first.config.model)

    @cached_property
    def asked(self) -> Asked | None:
        """The options of `resnet-train table` that make it; None if they are not known.

        The runs of a table record them. Other runs record their recipe at most, and runs of older
        versions nothing: for these it is the length of the run, by the data set's own recipe.
        """
        config = self.first.config
        if config.data not in DATA:
            return None
        asked = next((run.asked for run in self.runs if run.asked is not None), None)
        recipe = next((run.recipe for run in self.runs if run.recipe is not None), None)
        return confirm(asked or asked_by_length(config, recipe), config)

    @property
    def recipe_epochs(self) -> float | None:
        """Those of the recipe's whole schedule."""
        return self.asked and self.asked.epochs_of(self.first.config.model)

    @property
    def is_scaled(self) -> bool:
        """Whether the runs follow a recipe with a longer or shorter schedule than its own."""
        return self.recipe_epochs is not None and abs(self.epochs - self.recipe_epochs) >= 1

    @property
    def is_above_published(self) -> bool:
        """Whether a whole schedule ends more than two published deviations above the mean."""
        error = self.statistics("error")
        if error is None or self.asked is None or self.is_scaled:
            return False
        limits = [f.error + _DEVIATIONS * f.std for f in self.published if f.std is not None]
        return any(100 * error.mean > limit for limit in limits)

    def values(self, name: str) -> list[Any]:
        """Of a field of the outcomes, without None."""
        values = [getattr(run.outcome, name) for run in self.finished]
        return [value for value in values if value is not None]

    def statistics(self, name: str) -> Statistics | None:
        """The same over all runs; None if no run has a value."""
        values = self.values(name)
        return Statistics.of(values) if values else None

    def standard_error(self) -> float | None:
        """Of the mean error, which is measured on a sample of n images: sqrt(p (1 - p) / n).

        More seeds do not lower it: all are tested on the same images.
        """
        error, count = self.statistics("error"), self.first.test_images
        if error is None or not count:
            return None
        return float(np.sqrt(error.mean * (1 - error.mean) / count))


def count_parameters(config: Config) -> int | None:
    """Trained values, with the head; None if the data set's number of classes is not known."""
    data = DATA.get(config.data)
    return data and config.network(data.channels).count_parameters(data.classes)


def group_runs(runs: Iterable[RecordedRun]) -> list[Group]:
    """Groups the runs that differ only in their seed, sorted as in the table of models."""
    by_key: dict[str, list[RecordedRun]] = defaultdict(list)
    for run in runs:
        by_key[group_key(run)].append(run)
    groups = [_one_per_seed(members) for members in by_key.values()]
    return sorted(_with_options(groups), key=_sort_key)


def group_key(run: RecordedRun) -> str:
    """A text that is equal for the runs of one group, and only for these."""
    return json.dumps(_key(run), sort_keys=True)


def _key(run: RecordedRun) -> dict[str, Any]:
    fields = computed_fields(run.config)
    fields |= {"trained on": run.train_images, "tested on": _tested_on(run)}
    return {**fields, **_history(run)}


def _history(run: RecordedRun) -> dict[str, str | None]:
    """What its configuration does not say of how it was trained."""
    return {"changed": " and ".join(run.changes) or None, "from": run.weights}


def _tested_on(run: RecordedRun) -> tuple[str, int | None]:
    return run.test_name, run.test_images


def _one_per_seed(members: list[RecordedRun]) -> Group:
    """Of several runs of a seed a finished one counts, else the one with the most steps."""
    kept: dict[int, RecordedRun] = {}
    for run in sorted(members, key=lambda run: (run.outcome is None, -run.step)):
        kept.setdefault(run.seed, run)
    counted = tuple(kept[seed] for seed in sorted(kept))
    repeats = tuple(run for run in members if not any(run is other for other in counted))
    return Group(counted, repeats)


def _with_options(groups: list[Group]) -> list[Group]:
    """Gives each group the fields in which it differs from others of its model and data."""
    alike: dict[Any, list[Group]] = defaultdict(list)
    for group in groups:
        run = group.first
        alike[run.config.model, run.config.data, _tested_on(run)].append(group)
    result = []
    for members in alike.values():
        keys = [_key(group.first) for group in members]
        names = [name for name in keys[0] if any(key[name] != keys[0][name] for key in keys)]
        for group, key in zip(members, keys, strict=True):
            history = _history(group.first)  # is said even if no other group differs
            options = {name: key[name] for name in names if name not in history}
            options |= {name: text for name, text in history.items() if text is not None}
            result.append(dataclasses.replace(group, options=options))
    return result


def _sort_key(group: Group) -> tuple[Any, ...]:
    config, names = group.first.config, list_models()
    row = names.index(config.model) if config.model in names else len(names)
    tested = (group.first.test_name, group.first.test_images or 0)
    return config.data, tested, row, config.model, json.dumps(group.options, sort_keys=True)
