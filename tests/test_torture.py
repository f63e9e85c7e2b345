"""Runs killed at twenty random moments, a quarter of them inside the commit of a checkpoint."""

from pathlib import Path

import pytest

from tests.torture import STEPS, Torture, compare


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_the_uninterrupted_one_bit_for_bit(tmp_path: Path):
    torture = Torture(tmp_path, kills=20, commit_kills=5, seed=1)
    torture.torture()
    assert torture.kills.total() >= 20
    assert torture.kills["commit"] >= 5
    metrics = tmp_path / "whole" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("checkpoints", "model.safetensors"):
        (other / name).symlink_to(tmp_path / "whole" / name)
    for damage in (lines[1:], [lines[0], *lines], [*lines[:-1], lines[-1].replace("0.", "1.", 1)]):
        (other / "metrics.jsonl").write_text("\n".join(damage) + "\n")
        with pytest.raises(AssertionError):  # else equality would prove nothing
            compare(tmp_path / "whole", other)
    assert f'"step": {STEPS}' in lines[-1]
