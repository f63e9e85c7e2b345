"""The plugin of pytest, in a project that has neither our tests nor our conftest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import copy
import sys

import numpy as np


def test_nothing_is_imported_at_the_start():
    assert not {"torch", "jax", "flax", "convert"} & sys.modules.keys()


def test_of_a_port(assert_same):
    from torch import nn

    one = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    other = copy.deepcopy(one)
    images = np.ones((2, 3))
    assert_same(one, other, images)
    other[1].eps = 1e-2
    assert_same(other, one, images)
"""


@pytest.mark.torch
def test_a_failure_shows_the_table_and_writes_a_page(tmp_path):
    (tmp_path / "test_port.py").write_text(TEST)
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # it may be installed, too
    }
    options = ("-p", "pytest_flax_resnet", "-p", "no:cacheprovider", "--parity-html", "pages")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    assert "verdict: they differ, first at 1" in result.stdout
    assert "epsilon: with epsilon 1e-05 in A, 1 no longer differs" in result.stdout
    (page,) = (tmp_path / "pages").iterdir()
    assert page.name == "test_port.py_test_of_a_port-1.html"
    assert f"page: {page}" in result.stdout
    assert "they differ at 1" in page.read_text()
