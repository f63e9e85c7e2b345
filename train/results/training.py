"""Trains the runs that a table lacks. Finished runs stay as they are; unfinished ones go on."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet_spec import find_spec
from train.config import OF_ONE_START, Config, computed_fields
from train.errors import DivergedError, StoppedError, device_errors
from train.results.collect import RecordedRun, find_runs
from train.results.plan import Asked, configure, image_cost, row_name
from train.results.protocol import check_complete
from train.run.run_folder import CHECKPOINTS, SEEDS, saved_config


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of a table: these models, each with these seeds.

    Attributes:
        seeds_mode: `turns` for one run after another, else how a model's runs are trained at once.
        runs: the folder below which runs are found and made.
        fields: further fields of the configuration, such as the precision.
    """

    asked: Asked
    models: Sequence[str]
    seeds: Sequence[int]
    seeds_mode: str
    runs: Path
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def train_missing(plan: Plan, say: Callable[[str], None], after_each: Callable[[], None]) -> None:
    """Trains what is missing, the cheapest model first; calls `after_each` however a run ends.

    Raises:
        UserError: a run cannot be trained as asked.
        DivergedError: a run was not finite; the others have been trained.
        StoppedError: a signal came; everything is saved, and the same call goes on.
    """
    from train.run.signals import StopSignals  # imports JAX, which writing a table does not need

    asked, diverged = plan.asked, list[DivergedError]()
    protocol = asked.protocol
    check_complete(protocol, asked.data, plan.fields.get("data_dir"))
    with StopSignals() as signals:
        for model in sorted(plan.models, key=lambda model: image_cost(model, asked.data)):
            config = configure(model, asked, **plan.fields)
            found = [run for run in find_below(plan.runs) if is_run_of(run, config, protocol)]
            done = {run.seed for run in found if is_done(run)} & set(plan.seeds)
            say(f"{model} by {protocol}: {len(done)} of {len(plan.seeds)} runs are done")
            for start in starts(plan, config, found, protocol):
                if signals.received is not None:
                    raise StoppedError(_stopped(f"stopped by {signals.received} between runs"))
                try:
                    _train(start, asked)
                except DivergedError as error:
                    diverged.append(error)
                    say(f"{model}: {error}")
                except StoppedError as error:
                    raise StoppedError(_stopped(str(error).partition(": ")[0])) from error
                finally:
                    after_each()
    if diverged:
        raise diverged[0]


def find_below(folder: Path) -> list[RecordedRun]:
    """All runs below a folder; none if it does not exist yet."""
    return find_runs([folder])[0]


def is_run_of(run: RecordedRun, config: Config, protocol: str) -> bool:
    """Whether a run computes what a configuration says, on the images of a protocol."""
    if run.config.data != config.data or not run.is_plain or run.protocol != protocol:
        return False
    same = dataclasses.replace(run.config, model=config.model)  # a network can have two names
    is_same_network = find_spec(run.config.model) == find_spec(config.model)
    return is_same_network and computed_fields(same) == computed_fields(config)


def is_done(run: RecordedRun) -> bool:
    """Whether a run is finished and exported, and measured in torch if torch is installed.

    A finished run without checkpoints is done, too: only a new training could change it.
    """
    from train.run.export import FILE, has_torch

    if run.outcome is None:
        return False
    is_exported = (run.folder / FILE).is_file()
    is_measured = run.outcome.torch_error is not None or not has_torch()
    return (is_exported and is_measured) or not any(run.folder.glob(f"{CHECKPOINTS}/*"))


def starts(
    plan: Plan, config: Config, found: Iterable[RecordedRun], protocol: str
) -> Iterator[Config]:
    """The configurations that are left to train for a model, given its runs so far (`found`).

    A finished run that is not exported or not measured in torch is resumed, which does that.
    """
    runs = {run.seed: run for run in sorted(found, key=lambda run: (is_done(run), run.step))}
    unfinished = [runs[s] for s in plan.seeds if s in runs and not is_done(runs[s])]
    for folder in dict.fromkeys(_folder_to_resume(run) for run in unfinished):
        saved = saved_config(folder)
        assert saved is not None, "a run that was found has a configuration"
        data_dir = config.data_dir or saved.data_dir
        changes = {**OF_ONE_START, "data_dir": data_dir, "resume": True}
        yield dataclasses.replace(saved, run_dir=folder, **changes)
    missing = [seed for seed in plan.seeds if seed not in runs]
    place = plan.runs / row_name(config, protocol)
    if plan.seeds_mode == "turns" or len(missing) == 1:
        for seed in missing:
            yield dataclasses.replace(config, seed=seed, run_dir=_free(place, f"seed-{seed}"))
    elif missing:
        folder = _free(place, f"seeds-{'-'.join(map(str, missing))}")
        changes = {"seeds": ",".join(map(str, missing)), "seeds_mode": plan.seeds_mode}
        yield dataclasses.replace(config, run_dir=folder, **changes)


def _folder_to_resume(run: RecordedRun) -> Path:
    """The folder of the run, or that of all unfinished runs which were trained at once with it."""
    is_one_of_several = run.outcome is None and (run.folder.parent / SEEDS).exists()
    return run.folder.parent if is_one_of_several else run.folder


def _free(place: Path, name: str) -> Path:
    """`place/name`; or `place-2/name` and so on if a run of another configuration has that."""
    numbered = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
    folders = (folder / name for folder in itertools.chain([place], numbered))
    return next(f for f in folders if not any(f.glob("*.json")))


def _stopped(how: str) -> str:
    return f"{how.removesuffix(', which is saved')}; all is saved, and the same command goes on"


def _train(config: Config, asked: Asked) -> None:
    from train.run.loop import train  # imports JAX, which a finished table does not need

    with device_errors():
        train(config, recipe=asked.recipe_of(config.model), asked=dataclasses.asdict(asked))
