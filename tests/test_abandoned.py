"""What ends one thing and not the run: a signal a test, a divergence one seed among others."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.run_folders import assert_same, metrics
from train.config import Config
from train.config.recipes import RECIPES
from train.data.load import load_dataset
from train.errors import DivergedError, StoppedError, UserError
from train.run import export
from train.run.checkpoints import Checkpoints
from train.run.loop import train
from train.run.trainer import Trainer

CONFIG = dataclasses.replace(
    RECIPES["digits"].config,
    model="WideResNet16-1-0.0",
    global_batch_size=480,  # an epoch ends with the third step
    max_steps=4,
    schedule="drops",
    drop_steps=(8,),
    log_every_steps=1,
)


def steps_with_a_test(run: Path) -> list[int]:
    return [line["step"] for line in metrics(run) if line["kind"] == "test"]


def result(run: Path) -> dict[str, Any]:
    return {**json.loads((run / "result.json").read_text()), "seconds": None}


@pytest.mark.slow
def test_a_signal_during_a_test_or_the_last_check_does_not_wait_for_it_and_the_resumed_run_makes_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("train.step.batches._EVAL_BATCH_PER_DEVICE", {False: 5})  # nine batches
    whole, run = tmp_path / "whole", tmp_path / "a"
    train(dataclasses.replace(CONFIG, run_dir=whole))
    test = Trainer.test

    def stop_during_the_test_of(step: int, **changes: Any) -> None:
        def interrupted(self: Trainer, state: Any, **options: Any) -> Any:
            if int(np.asarray(state.step)) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return test(self, state, **options)

        with monkeypatch.context() as during:
            during.setattr(Trainer, "test", interrupted)
            with pytest.raises(StoppedError, match=f"SIGTERM after step {step}"):
                train(dataclasses.replace(CONFIG, run_dir=run, **changes))

    stop_during_the_test_of(3)
    assert steps_with_a_test(run) == []
    stop_during_the_test_of(4, resume=True)
    assert steps_with_a_test(run) == [3]
    check_parity = export.check_parity

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return check_parity(*arguments, **options)

    with monkeypatch.context() as during:
        during.setattr(export, "check_parity", interrupted)
        with pytest.raises(StoppedError, match="SIGTERM after step 4"):
            train(dataclasses.replace(CONFIG, run_dir=run, resume=True))
    assert not (run / "result.json").exists()
    train(dataclasses.replace(CONFIG, run_dir=run, resume=True))
    assert steps_with_a_test(run) == [3, 4]
    assert_same(run, whole)
    assert result(run) == result(whole)


@pytest.mark.slow
def test_a_seed_that_diverges_beside_others_ends_only_its_own_run(tmp_path, capsys):
    many = dataclasses.replace(
        CONFIG, run_dir=tmp_path / "many", seeds="7,111", seeds_mode="vmap", max_steps=2
    )
    train(many)
    shutil.copytree(tmp_path / "many", tmp_path / "whole")
    resumed = dataclasses.replace(many, resume=True, max_steps=4)
    train(dataclasses.replace(resumed, run_dir=tmp_path / "whole"))
    spoil(tmp_path / "many" / "seed-7", CONFIG)
    with pytest.raises(DivergedError, match="the run with seed 7 is nan at step 3"):
        train(resumed)
    assert "the other seeds go on" in capsys.readouterr().out
    assert_same(tmp_path / "many" / "seed-111", tmp_path / "whole" / "seed-111")
    assert result(tmp_path / "many" / "seed-111") == result(tmp_path / "whole" / "seed-111")
    assert [path.name for path in (tmp_path / "many" / "seed-7" / "checkpoints").iterdir()] == ["2"]
    assert result(tmp_path / "many" / "seed-7")["step"] == 2
    with pytest.raises(UserError, match=r"of seed 111 no checkpoint of step 2 is left.* turns"):
        train(dataclasses.replace(resumed, max_steps=5))


def spoil(run: Path, config: Config) -> None:
    """A checkpoint whose weights are finite, and whose next loss is not."""
    dataset = load_dataset(config)
    trainer = Trainer(config, dataset)
    with Checkpoints(run, trainer.classifier, dataset.preprocessing) as checkpoints:
        state = checkpoints.restore(trainer.first_states([7])[0])
        checkpoints.delete_after(1)
        head = np.full_like(state.params["head.kernel"], 3e38)
        checkpoints.save(state._replace(params={**state.params, "head.kernel": head}), error=0.9)
