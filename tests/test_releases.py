"""Files that another release of JAX, Orbax or torch wrote are read bit for bit."""

import re
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import convert
from convert.files import read_weights
from convert.inspection import inspect
from convert.twins import flax_to_arrays
from tests.releases import FOLDER, IMAGES, PREPROCESSING, make_network
from tests.saved_states import assert_same, best_step, make_state, open_run
from tests.torch_or_none import torch
from tests.twins import assert_same_state, relative_error, to_nchw

ROOT = Path(__file__).parents[1]
# Extras; those of `prepare` are one's own.
OF_USERS = ("torch", "train", "keras", "hub", "onnx", "plot", "wandb")


@pytest.fixture(scope="module", params=sorted(FOLDER.glob("*.zip")), ids=lambda path: path.stem)
def kept(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.stem)
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(folder)
    return folder


def test_there_are_files_of_more_than_one_release():
    assert len(list(FOLDER.glob("*.zip"))) > 1


def test_a_run_of_another_release_goes_on_from_the_same_bits(kept):
    with open_run(kept / "run") as checkpoints:
        assert_same(checkpoints.restore(make_state(0), step=20), make_state(20))
        assert best_step(checkpoints) == 20


def test_weights_of_another_release_are_the_same_bits(kept):
    expected = flax_to_arrays(make_network())
    paths = [path for path in kept.iterdir() if path.suffix in (".safetensors", ".npz", ".pt")]
    assert len(paths) >= 3
    for path in paths:
        assert_same_state(read_weights(path).arrays, expected)
        assert path.stem != "model" or convert.load_preprocessing(path) == PREPROCESSING


def test_a_network_of_another_release_computes_its_logits(kept):
    model: Any = convert.load(kept / "model.safetensors", backend="flax")
    model.eval()
    logits = model(jnp.asarray(np.load(kept / "images.npy")))
    assert relative_error(logits, np.load(kept / "logits.npy")) <= 1e-6


# Only what was written where there was torch has programs.
has_programs = pytest.mark.parametrize(
    "kept", [FOLDER / "jax-0.10.2.zip"], indirect=True, ids=lambda path: path.stem
)


@has_programs
def test_a_program_names_the_release_of_torch_that_wrote_it_and_another_that_is_here(
    kept, monkeypatch
):
    path = kept / "model.pt2"
    assert convert.load_preprocessing(path) == PREPROCESSING
    assert convert.load_preprocessing(kept / "model.onnx") == PREPROCESSING
    for here, said in (
        ("9.8.7+cpu", ", and torch here is 9.8.7+cpu, which may not open it"),
        ("2.13.0", ""),
    ):
        monkeypatch.setattr("importlib.metadata.version", lambda name, here=here: here)
        note = inspect(path)["notes"][-1]
        assert re.match(r"written by torch 2\.13\.0(\+cpu)?" + re.escape(said), note)
        assert bool(said) == ("then export it again" in note)


@pytest.mark.torch
@has_programs
def test_a_program_of_another_release_computes_the_same(kept):
    module: Any = torch.export.load(kept / "model.pt2").module()
    logits = np.load(kept / "logits.npy")
    with torch.no_grad():
        assert relative_error(module(to_nchw(IMAGES)).numpy(), logits) <= 1e-5


def test_the_oldest_releases_are_the_lower_ends_of_the_ranges_and_the_lock_is_within():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in OF_USERS for text in extras[name])]
    texts += [text for text in extras["dev"] if text.startswith("torchvision")]  # torch's pair
    lowest, lock = dict[str, Version](), pins("requirements.lock")
    for wanted in map(Requirement, texts):
        if wanted.marker is None or wanted.marker.evaluate({"python_version": "3.11"}):
            (bound,) = wanted.specifier
            assert bound.operator == ">="
            name = canonicalize_name(wanted.name)
            lowest[name] = Version(bound.version)
            assert lock[name] in wanted.specifier, name
    assert pins("requirements.oldest") == lowest


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text().splitlines()
    found = [line.partition("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, _, version in found}
