"""Trains the runs that a table lacks: those that are half done go on, those that are done stay."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet_spec import find_spec
from train.config import OF_ONE_START, Config, computed_fields
from train.errors import DivergedError, StoppedError, device_errors
from train.results.collect import Run, find_runs
from train.results.plan import Wish, cheapest_first, configure, row_name
from train.results.protocol import expected, protocol_of
from train.run.run_folder import CHECKPOINTS, SEEDS, saved_config


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the table is to have: these models by these seeds, with their runs below a folder.

    seeds_mode: `turns` for a run after another, else how the runs of a model are trained at once.
    """

    wish: Wish
    models: Sequence[str]
    seeds: Sequence[int]
    seeds_mode: str
    runs: Path


def train_missing(plan: Plan, say: Callable[[str], None], after_each: Callable[[], None]) -> None:
    """Trains what is missing, the cheapest model first; `after_each` run, however it ends.

    Raises:
        UserError: a run cannot be trained as it is asked for.
        DivergedError: a run was not finite; the others have been trained.
        StoppedError: a signal came; all is saved, and the same call goes on.
    """
    from train.run.signals import (
        StopSignals,  # JAX comes along, which a page of results can do without
    )

    label = expected(plan.wish.protocol, plan.wish.data, plan.wish.data_dir)
    diverged: list[DivergedError] = []
    with StopSignals() as signals:
        for model in cheapest_first(plan.models, plan.wish.data):
            config = configure(model, plan.wish)
            found = [run for run in find_below(plan.runs) if is_run_of(run, config, label)]
            done = {run.seed for run in found if is_done(run)} & set(plan.seeds)
            say(f"{model} by {label}: {len(done)} of {len(plan.seeds)} runs are done")
            for start in starts(plan, config, found, label):
                if signals.received is not None:
                    raise StoppedError(_stopped(f"stopped by {signals.received} between runs"))
                try:
                    _train(start)
                except DivergedError as error:
                    diverged.append(error)
                    say(f"{model}: {error}")
                except StoppedError as error:
                    raise StoppedError(_stopped(str(error).partition(": ")[0])) from error
                finally:
                    after_each()
    if diverged:
        raise diverged[0]


def find_below(folder: Path) -> list[Run]:
    """All runs below a folder, none where it does not exist yet."""
    return find_runs([folder])[0]


def is_run_of(run: Run, config: Config, label: str) -> bool:
    """Whether a run computes what a configuration says, on the images of a protocol."""
    if run.config.data != config.data or not run.is_plain or protocol_of(run) != label:
        return False
    same = dataclasses.replace(run.config, model=config.model)  # it may have two names
    is_same_network = find_spec(run.config.model) == find_spec(config.model)
    return is_same_network and computed_fields(same) == computed_fields(config)


def is_done(run: Run) -> bool:
    """Whether a run is finished, and its network exported and measured where torch is there.

    Without its checkpoints it could only be trained again for that, which nobody has asked for.
    """
    from train.run.export import FILE, has_torch

    if run.outcome is None:
        return False
    is_exported = (run.folder / FILE).is_file()
    is_measured = run.outcome.torch_error is not None or not has_torch()
    return (is_exported and is_measured) or not any(run.folder.glob(f"{CHECKPOINTS}/*"))


def starts(plan: Plan, config: Config, found: Iterable[Run], label: str) -> Iterator[Config]:
    """What is left to train of a model, each as the trainer takes it; `found`: its runs so far.

    A finished run that is not exported, or not measured in torch, is resumed for that.
    """
    runs = {run.seed: run for run in sorted(found, key=lambda run: (is_done(run), run.step))}
    half_done = [runs[s] for s in plan.seeds if s in runs and not is_done(runs[s])]
    for folder in dict.fromkeys(_folder_to_resume(run) for run in half_done):
        saved = saved_config(folder)
        assert saved is not None, "a run that was found has a configuration"
        data_dir = config.data_dir or saved.data_dir
        changes = {**OF_ONE_START, "data_dir": data_dir, "resume": True}
        yield dataclasses.replace(saved, run_dir=folder, **changes)
    missing = [seed for seed in plan.seeds if seed not in runs]
    place = row_name(config, label)
    if plan.seeds_mode == "turns" or len(missing) == 1:
        for seed in missing:
            folder = _free(plan.runs / place, f"seed-{seed}")
            yield dataclasses.replace(config, seed=seed, run_dir=folder)
    elif missing:
        seeds = ",".join(map(str, missing))
        folder = _free(plan.runs / place, f"seeds-{seeds.replace(',', '-')}")
        mode: Any = plan.seeds_mode
        yield dataclasses.replace(config, seeds=seeds, seeds_mode=mode, run_dir=folder)


def _folder_to_resume(run: Run) -> Path:
    """That of the run, or of all that were trained at once with it and are not finished, too."""
    is_one_of_several = run.outcome is None and (run.folder.parent / SEEDS).exists()
    return run.folder.parent if is_one_of_several else run.folder


def _free(place: Path, name: str) -> Path:
    """`place/name`, or `place-2/name` and so on where another configuration's run has that."""
    numbered = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
    folders = (folder / name for folder in itertools.chain([place], numbered))
    return next(f for f in folders if not any(f.glob("*.json")))


def _stopped(how: str) -> str:
    return f"{how.removesuffix(', which is saved')}; all is saved, and the same command goes on"


def _train(config: Config) -> None:
    from train.run.loop import train  # JAX starts here: a finished table need not wait

    with device_errors():
        train(config)
