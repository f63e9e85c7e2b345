"""A damaged checkpoint is found, named and passed over: never a silently wrong state."""

import collections
import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import convert
from convert.runs.disk_format import ARRAY_ITEMS
from convert.runs.orbax_access import patient_loops
from convert.runs.saved_run import read_run
from tests.saved_states import (
    array_file,
    assert_same,
    best_step,
    files,
    flip_a_bit,
    make_state,
    open_run,
    run_of_two,
    steps,
)
from train.errors import UserError

__all__ = ["run_of_two"]  # a fixture


class Damages:
    """A run damaged in every way, one at a time; what became of each is counted."""

    def __init__(self, run: Path, flips: int, items: tuple[str, ...]):
        self.run, self.flips, self.rng = run, flips, random.Random(0)
        self.expected = read_run(run).arrays
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        beside = {*ARRAY_ITEMS} - {*items}
        chosen = (path for path in files(run) if not beside & {*path.parts})
        self.whole = {path: path.read_bytes() for path in chosen}

    def kinds(self) -> Iterator[tuple[str, Path]]:
        for path, content in self.whole.items():
            path.write_bytes(content[: len(content) // 2])
            yield "half", path
            path.write_bytes(b"")
            yield "empty", path
            path.unlink()
            yield "deleted", path
            for _ in range(self.flips):
                path.write_bytes(content)
                flip_a_bit(path, self.rng)
                yield "one bit", path
            path.write_bytes(content)

    def try_all(self) -> None:
        for kind, path in self.kinds():
            said: list[str] = []
            with open_run(self.run, say=said.append) as checkpoints:
                state = checkpoints.restore(make_state(0))
            step = int(state.step)
            assert_same(state, make_state(step))
            assert checkpoints.restored["seconds"] == step + 0.5
            self.counts[kind, f"step {step}"] += 1
            if step == 10:
                assert len(said) == 1, said
                assert "checkpoints/20 is damaged (" in said[0]
                (self.run / "checkpoints" / "20.damaged").rename(self.run / "checkpoints" / "20")
            else:
                assert not said
            self._convert(kind, path)

    def _convert(self, kind: str, path: Path) -> None:
        try:
            found = read_run(self.run).arrays
        except convert.ConversionError:
            self.counts[kind, "not converted"] += 1
            return
        assert found.keys() == self.expected.keys()
        for name, array in found.items():
            assert array.tobytes() == self.expected[name].tobytes(), (kind, path, name)
        self.counts[kind, "converted"] += 1


@pytest.mark.parametrize(
    ("flips", "items"),
    [(1, ("ema",)), pytest.param(20, ARRAY_ITEMS, marks=pytest.mark.slow)],
    ids=["one item", "all"],
)
def test_a_damaged_file_is_never_a_silently_wrong_state(run, flips, items, capfd):
    """The newest checkpoint's values come back, or those of the one before, bit for bit."""
    damages = Damages(run, flips, items)
    damages.try_all()
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    with capfd.disabled():
        print(f"\n{len(damages.whole)} files, each damaged in {flips + 3} ways:")
        for (kind, outcome), count in sorted(damages.counts.items()):
            print(f"  {kind:8} {outcome:14} {count:5}")
    for kind in ("half", "empty", "deleted", "one bit"):
        assert damages.counts[kind, "step 10"] > 0
        assert damages.counts[kind, "not converted"] > 0


@pytest.mark.parametrize("item", ["progress", "model"])
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(of_nobody, item):
    with open_run(of_nobody) as checkpoints:
        for step in (10, 20):
            checkpoints.save(make_state(step))
    closed = [path for path in files(of_nobody) if item in path.parts]
    with open_run(of_nobody) as checkpoints:
        for path in closed:
            path.chmod(0)
        with pytest.raises(PermissionError):
            checkpoints.restore(make_state(0))
        for path in closed:
            path.chmod(0o600)
        assert_same(checkpoints.restore(make_state(0)), make_state(20))
    assert steps(of_nobody) == ["10", "20"]


@pytest.mark.parametrize("item", ["model", "optimizer", "ema", "description", "progress", "all"])
def test_a_missing_item_is_damage(run, item, capsys):
    place = run / "checkpoints" / "20"
    for path in list(place.iterdir()) if item == "all" else [place / item]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with open_run(run) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(10))
        assert (checkpoints.latest_step(), best_step(checkpoints)) == (10, 10)
    told = capsys.readouterr().err
    assert f"{place} is damaged" in told
    assert "renamed to 20.damaged; going on from step 10" in told


def test_the_converter_does_not_take_the_newest_weights_for_a_missing_average(run):
    shutil.rmtree(run / "checkpoints" / "20" / "ema")
    with pytest.raises(convert.ConversionError, match="not a whole checkpoint"):
        read_run(run)


def test_a_step_that_was_damaged_is_saved_again(run):
    for number in range(3):
        array_file(run).write_bytes(b"")
        with open_run(run, say=lambda _: None) as checkpoints:
            assert int(checkpoints.restore(make_state(0)).step) == 10
            checkpoints.save(make_state(20), error=0.1)
            checkpoints.wait()
            assert_same(checkpoints.restore(make_state(0)), make_state(20))
        assert len([name for name in steps(run) if "damaged" in name]) == number + 1
    assert steps(run)[:2] == ["10", "20"]


def test_a_step_that_is_damaged_while_the_run_goes_on_is_saved_again(run):
    said: list[str] = []
    with open_run(run, say=said.append) as checkpoints:
        (run / "checkpoints" / "20" / "progress" / "metadata").write_text("{")
        checkpoints.save(make_state(20))
        checkpoints.wait()
        assert_same(checkpoints.restore(make_state(0)), make_state(20))
    assert "20 is damaged" in said[0]


def test_what_is_not_committed_or_no_checkpoint_is_passed_over(run):
    folder = run / "checkpoints"
    shutil.copytree(folder / "20", folder / "30.orbax-checkpoint-tmp")
    (folder / "40").mkdir()
    (folder / "50").write_text("no folder")
    (folder / "notes.txt").write_text("mine")
    said: list[str] = []
    with open_run(run, say=said.append) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(20))
        for step in (30, 40, 50):
            checkpoints.save(make_state(step))
    assert [line.partition(" is damaged")[0][-2:] for line in said] == ["50", "40"]
    assert steps(run) == ["20", "40", "40.damaged", "50", "50.damaged", "notes.txt"]


def test_where_none_is_good_each_is_named_and_left_as_it_is(run):
    array_file(run, 10).write_bytes(b"")
    array_file(run, 20).unlink()
    with open_run(run) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(make_state(0))
    for part in ("checkpoints/10: ", "checkpoints/20: ", "no checkpoint is good"):
        assert part in str(caught.value)
    assert steps(run) == ["10", "20"]
    with open_run(run) as checkpoints, pytest.raises(UserError, match=r"of step 7; .*10, 20"):
        checkpoints.restore(make_state(0), step=7)
    with open_run(run / "new") as checkpoints, pytest.raises(UserError, match="to resume from"):
        checkpoints.restore(make_state(0))


def test_orbax_alone_would_not_see_a_flipped_bit(run):
    """Else the checksums were for nothing: of twenty flips in an array, many come back."""
    rng, whole, silent = random.Random(2), array_file(run).read_bytes(), 0
    item = next(p for p in array_file(run).parents if p.name in ARRAY_ITEMS)
    handler, place = ocp.PyTreeCheckpointHandler(), epath.Path(item)
    for _ in range(20):
        flip_a_bit(array_file(run), rng)
        tree = dict(handler.metadata(place).tree)
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        with patient_loops(), contextlib.suppress(Exception):
            handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=args))
            silent += 1
        array_file(run).write_bytes(whole)
    assert silent > 10
