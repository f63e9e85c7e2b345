"""Runs that differ in their seed alone, and what they reached together."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from resnet_spec import DIALECT, find_spec, list_models
from train.config import computed_fields
from train.results.collect import Outcome, Run
from train.results.published import DATA, Published, published


@dataclass(frozen=True)
class Statistics:
    """Of one number over several runs; the sample's standard deviation, None for one run."""

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
    """Runs of one configuration.

    Attributes:
        runs: one for each seed, in their order.
        repeats: further runs of a seed, which do not count.
        options: fields in which it differs from other groups of the same model and data, and what
            was changed on the way or not its own from the start.
    """

    runs: tuple[Run, ...]
    repeats: tuple[Run, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def first(self) -> Run:
        return self.runs[0]

    @cached_property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.outcome is not None]

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if run.outcome is None]

    @property
    def outcomes(self) -> list[Outcome]:
        return [run.outcome for run in self.runs if run.outcome is not None]

    @cached_property
    def parameters(self) -> int | None:
        """Trained values, the head counted; None where the number of classes is not known."""
        config, data = self.first.config, DATA.get(self.first.config.data)
        if data is None:
            return None
        names = ("shortcut", "zero_init_residual", *DIALECT)
        fields = {name: getattr(config, name) for name in names}
        spec = dataclasses.replace(find_spec(config.model), in_planes=data.channels, **fields)
        return spec.count_parameters(data.classes)

    @property
    def whole_test_size(self) -> int | None:
        """Images of the whole test set, where it was tested on that or on a part."""
        data = DATA.get(self.first.config.data)
        return data.test_images if data is not None and self.first.test_name == "test" else None

    @property
    def is_partial(self) -> bool:
        """Whether the test set is known to be only a part of the published one."""
        tested, whole = self.first.test_images, self.whole_test_size
        return tested is not None and whole is not None and tested < whole

    @property
    def epochs(self) -> float:
        """As configured, or fewer where `max_steps` ends the run before."""
        return min(float(self.first.config.epochs), self.first.epoch(self.first.total_steps))

    @property
    def published(self) -> list[Published]:
        return published(self.first.config.data, self.first.config.model)

    def statistics(self, name: str) -> Statistics | None:
        """Of one number of the outcome over the finished runs; None where none has it."""
        values = [getattr(outcome, name) for outcome in self.outcomes]
        known = [value for value in values if value is not None]
        return Statistics.of(known) if known else None

    def standard_error(self) -> float | None:
        """Of the mean error as that of a sample of images: sqrt(p (1 - p) / n).

        Seeds do not lessen it: all are tested on the same images.
        """
        error, count = self.statistics("error"), self.first.test_images
        if error is None or not count:
            return None
        return float(np.sqrt(error.mean * (1 - error.mean) / count))


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups the runs that differ in nothing but the seed, in the order of the table of models."""
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_key[group_key(run)].append(run)
    groups = [_one_a_seed(members) for members in by_key.values()]
    return sorted(_with_options(groups), key=_place)


def group_key(run: Run) -> str:
    """The same for the runs of one group, of all others another."""
    return json.dumps(_key(run), sort_keys=True)


def _key(run: Run) -> dict[str, Any]:
    fields = computed_fields(run.config)
    fields |= {"trained on": run.train_images, "tested on": _tested_on(run)}
    return {**fields, **history(run)}


def history(run: Run) -> dict[str, str | None]:
    """What its configuration does not say of how it was trained; None where there is nothing."""
    return {"changed": " and ".join(run.changes) or None, "from": run.weights}


def _tested_on(run: Run) -> tuple[str, int | None]:
    return run.test_name, run.test_images


def _one_a_seed(members: list[Run]) -> Group:
    """Of several runs of a seed the finished one counts, else the furthest, else the first."""
    kept: dict[int, Run] = {}
    for run in sorted(members, key=lambda run: (run.outcome is None, -run.step)):
        kept.setdefault(run.seed, run)
    counted = tuple(kept[seed] for seed in sorted(kept))
    repeats = tuple(run for run in members if not any(run is other for other in counted))
    return Group(counted, repeats)


def _with_options(groups: list[Group]) -> list[Group]:
    """What tells groups of one model and data apart, said in each of them."""
    alike: dict[Any, list[Group]] = defaultdict(list)
    for group in groups:
        run = group.first
        alike[run.config.model, run.config.data, _tested_on(run)].append(group)
    result = []
    for members in alike.values():
        keys = [_key(group.first) for group in members]
        names = [name for name in keys[0] if any(key[name] != keys[0][name] for key in keys)]
        for group, key in zip(members, keys, strict=True):
            told = history(group.first)  # always, where there is any; only where there is
            options = {name: key[name] for name in names if name not in told}
            options |= {name: text for name, text in told.items() if text is not None}
            result.append(dataclasses.replace(group, options=options))
    return result


def _place(group: Group) -> tuple[Any, ...]:
    config, names = group.first.config, list_models()
    row = names.index(config.model) if config.model in names else len(names)
    tested = (group.first.test_name, group.first.test_images or 0)
    return config.data, tested, row, config.model, json.dumps(group.options, sort_keys=True)
