"""Thousands of damaged files: only our own errors, no hang, no memory out of proportion."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_time_and_memory():
    """A process of its own: it forks, which JAX in this one would not bear."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--count", "5000", "--seed", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "5000  files" in run.stdout
    for kind in ("safetensors", "npz", "pt", "config"):  # neither all nor none is refused
        assert f"{kind}: accepted" in run.stdout
        assert f"{kind}: refused, by us" in run.stdout
