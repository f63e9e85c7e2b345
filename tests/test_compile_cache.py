"""The folders of compiled programs: what a start finds, what goes, and what is broken."""

import os
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.commands import assert_refused, run, run_here
from train.run import compile_cache
from train.run.compile_cache import make_folder


def test_what_is_cut_short_old_or_too_much_goes_and_the_newest_stay(tmp_path, monkeypatch):
    whole = zlib.compress(os.urandom(1000))
    folder = tmp_path / "jax-1"
    folder.mkdir()

    def names() -> set[str]:
        compile_cache.prune(tmp_path)
        return {path.name.removesuffix("-cache") for path in folder.iterdir()}

    now = time.time()
    contents = {"new": whole, "used": whole, "old": whole, "cut": whole[:500], "empty": b""}
    for days, (name, content) in enumerate(contents.items()):
        path = folder / f"{name}-cache"
        path.write_bytes(content)
        age = 24 * 3600 * (40 if name == "old" else days)
        os.utime(path, (now - age, now - age))
    assert names() == {"new", "used"}
    monkeypatch.setattr(compile_cache, "_BYTES", 1500)
    assert names() == {"new"}


def test_processors_numbers_of_cores_and_releases_do_not_share_programs(monkeypatch, tmp_path):
    one = make_folder(tmp_path)
    assert one.is_dir()
    assert make_folder(tmp_path) == one
    monkeypatch.setattr(compile_cache, "count_cores", lambda: 99)
    assert make_folder(tmp_path) not in (one, one.with_name(one.name[:-12]))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = run_here("train", "digits", "--compile-cache", "file", cwd=tmp_path)
    assert_refused(result, "--compile-cache file: ", "Not a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_the_next_start_finds_what_the_first_compiled(tmp_path):
    """By default in the user's cache; not where it has no home, nor where it is told so."""
    arguments = ("digits", "--model", "WideResNet16-1-0.0", "--max-steps", "1")
    variables: dict[str, Any] = {
        "JAX_COMPILATION_CACHE_DIR": "",
        "XDG_CACHE_HOME": f"{tmp_path / 'caches'}",
    }

    def programs() -> set[Path]:
        return set((tmp_path / "caches" / "flax-resnet").glob("jax-*/*-cache"))

    def start(run_dir: str, *options: str, **changes: str) -> None:
        words = (*arguments, *options, "--run-dir", run_dir)
        result = run("train", *words, cwd=tmp_path, **{**variables, **changes})
        assert result.returncode == 0, result.stderr
        assert not result.stderr

    start("a", "--compile-cache", "none")
    assert not programs()
    start("b")
    found = programs()
    assert max(path.stat().st_size for path in found) > 10**5  # the step
    start("c", XDG_CACHE_HOME="/dev/null")
    start("d")
    assert programs() == found
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abcd"]
    assert all(model == models[0] for model in models)
