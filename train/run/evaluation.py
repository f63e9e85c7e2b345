"""Tests weights without training: those of a file, or of runs."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from train.config import Config, check_resumable
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.errors import UserError
from train.run import compile_cache, export
from train.run.display import Display
from train.run.run_folder import saved_config, seed_folder
from train.run.saved_state import (
    compare_classes,
    compare_normalisations,
    compare_sizes,
    unsaid,
)
from train.run.trainer import Score, Trainer, describe
from train.step import processes
from train.step.train_step import averaged


def evaluate(config: Config, *, given: Collection[str] | None = None) -> list[Score]:
    """Tests the weights of `init_from`, or those that runs would export, and prints the errors.

    Args:
        config: what is tested.
        given: the fields that count more than a preprocessing, see `settle_preprocessing`.
    """
    compile_cache.use(config.compile_cache)
    with processes.joined(config), Display(enabled=processes.is_first_process()) as display:
        config, is_stated, note = export.settle_preprocessing(config, given)
        if note:
            display.say(note)
        sources = _sources(config)
        dataset = load_dataset(config)
        config = config.resolved(len(dataset.train))
        scores = []
        for seed, source in sources.items():
            layout = None if config.resume else config.init_layout  # a run has our own names
            found = dataclasses.replace(config, init_from=source, init_layout=layout)
            weights = export.load_weights(found, describe(config, dataset))
            name = export.shown(f"{source}")
            if "head.kernel" not in weights.arrays:
                raise UserError(f"{name} has no head of {dataset.num_classes} classes to test")
            _check_images(name, weights.preprocessing, dataset, is_stated, display)
            trainer = Trainer(config, dataset, weights=weights.arrays)
            state = trainer.place(trainer.first_states([seed]))
            scores += trainer.test(averaged(state))
            display.say(
                f"{name}: test loss {scores[-1].loss:.4f}, test error {scores[-1].error:.2%} "
                f"of {scores[-1].images} images of {dataset.test_name}{dataset.missing()}"
            )
        return scores


def _sources(config: Config) -> dict[int, Path | None]:
    """The weights to test, by seed: a file, or the folders of runs that fit the configuration."""
    folder = config.run_dir
    if not config.resume or folder is None:
        return {config.seed: config.init_from}
    if not folder.is_dir():
        raise UserError(f"--run-dir {folder} does not exist: there is no run to test")
    if saved := saved_config(folder):  # some of its seeds may be tested
        check_resumable(saved, dataclasses.replace(config, seeds=saved.seeds))
    sources = {seed: seed_folder(folder, config, seed) for seed in config.seed_list}
    if missing := [place.name for place in sources.values() if not place.is_dir()]:
        there = ", ".join(sorted(place.name for place in folder.glob("seed-*"))) or "none"
        raise UserError(
            f"--seeds {config.seeds}: --run-dir {folder} holds no {', '.join(missing)}; there: "
            f"{there}"
        )
    return {**sources}


def _check_images(
    source: str,
    found: dict[str, Any] | None,
    dataset: Dataset,
    is_stated: bool,
    display: Display,
) -> None:
    """Refuses weights of other classes, or of images of another size in memory: no error is right.

    What the user states instead of the weights is a note. ImageNet's classes have two kinds of
    names: words, and WordNet's synset numbers.
    """
    here = dataset.preprocessing
    problems, classes = compare_normalisations(found, here), compare_classes(found, here)
    sizes = compare_sizes(found, here, is_resized=dataset.is_streamed)
    notes = [] if found or is_stated else [unsaid(here)]
    if is_stated:
        notes, problems = [*notes, *problems, *sizes], []
    elif dataset.is_streamed:
        notes += sizes
    else:
        problems += sizes
    for note in notes:
        display.say(f"{source} {note}")
    names = (found or {}).get("class_names") or ()
    if classes and _are_synsets(names) != _are_synsets(here.class_names or ()):
        display.say(f"{source} {classes[0]}: they are taken to be the same, in the same order")
        classes = []
    if problems := [*problems, *classes]:
        raise UserError("; ".join(f"{source} {problem}" for problem in problems))


def _are_synsets(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"n\d{8}", name) for name in names)
