"""The damaged files of one batch, the same for the same seed."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies
from safetensors.numpy import save_file

from convert.folders import timm_config, transformers_config
from resnet_spec import PREPROCESSINGS, ClassifierSpec, find_spec
from tests import mutators


def _texts(files: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(content) for name, content in files.items()}


# layout -> the JSON files of a model folder, by their names
MODEL_FOLDERS = {
    "timm": _texts(
        timm_config.write(ClassifierSpec(find_spec("ResNet18"), 3), PREPROCESSINGS["imagenet"])
    ),
    "transformers": _texts(
        transformers_config.write(
            ClassifierSpec(find_spec("ResNet50"), 3), PREPROCESSINGS["imagenet"]
        )
    ),
}


def write_model_folder(folder: Path, layout: str) -> None:
    """A sound folder, but that its few tensors are of no network: it is refused at the last."""
    folder.mkdir(exist_ok=True)
    for name, text in MODEL_FOLDERS[layout].items():
        (folder / name).write_text(text)
    if not (weights := folder / "model.safetensors").exists():
        save_file({f"a{number}": np.zeros(1, np.float32) for number in range(400)}, weights)


def cases(kind: str, seed: int, start: int, count: int) -> Iterator[tuple[str, bytes]]:
    """(suffix, content) of each damaged file of a batch, the same for the same arguments."""
    files = mutators.base_files()
    header, data = mutators.split_header(files["safetensors"][0][1])
    for number in range(start, start + count):
        rng = random.Random(f"{kind} {seed} {number}")
        if kind == "folder":
            layout = rng.choice(list(MODEL_FOLDERS))
            name, text = rng.choice(list(MODEL_FOLDERS[layout].items()))
            content = mutators.mutate_json(rng, json.loads(text)).encode(errors="surrogatepass")
            if rng.random() < 0.2:
                content = mutators.mutate_bytes(rng, content)
            yield f"-{layout}/{name}", content
            continue
        if kind == "config":
            text = mutators.mutate_json(rng, mutators.description())
            if rng.random() < 0.2:
                text = mutators.mutate_bytes(rng, text.encode()).decode("latin1")
            yield ".safetensors", _described(header, data, text)
            continue
        suffix, content = rng.choice(files[kind])
        if kind == "safetensors" and rng.random() < 0.5:
            content = mutators.with_header(mutators.mutate_json(rng, header), data)
        elif content.startswith(b"PK") and rng.random() < 0.6:
            content = mutators.mutate_zip(rng, content)
        else:
            content = mutators.mutate_bytes(rng, content)
        yield suffix, content


def _described(header: Any, data: bytes, description: str) -> bytes:
    metadata = {"flax_resnet": description}
    return mutators.with_header(json.dumps({**header, "__metadata__": metadata}), data)


def hypothesis_cases(
    kind: str, seed: int, start: int, count: int, run: Callable[[str, bytes], None]
) -> None:
    """Runs so many files whose JSON hypothesis makes up, whole or as part of a sound one."""
    header, data = mutators.split_header(mutators.base_files()["safetensors"][0][1])
    sound: Any = mutators.description() if kind.startswith("config") else header
    names = strategies.sampled_from([*sound, *header["head.weight"], "network", "stage_depths"])
    anything = strategies.recursive(
        strategies.none()
        | strategies.booleans()
        | strategies.integers()
        | strategies.floats()
        | strategies.text(),
        lambda inner: (
            strategies.lists(inner) | strategies.dictionaries(names | strategies.text(), inner)
        ),
        max_leaves=10,
    )

    @hypothesis.seed(hash((seed, start)))
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck.__members__.values()),
    )
    @hypothesis.given(anything, strategies.booleans())
    def generate(value: Any, is_merged: bool) -> None:
        if is_merged and isinstance(value, dict):
            value = {**sound, **value}
        if kind.startswith("config"):
            run(".safetensors", _described(header, data, json.dumps(value)))
        else:
            run(".safetensors", mutators.with_header(json.dumps(value), data))

    generate()
