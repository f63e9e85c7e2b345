"""`resnet-train results`: the table, its files and the curves, of real runs and damaged ones."""

import dataclasses
import io
import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import convert
from resnet_spec import find_spec
from tests.commands import run
from tests.conftest import DIGITS_RUNS
from train.__main__ import main
from train.config import Config
from train.results.collect import find_runs
from train.results.groups import computed_fields, group_runs
from train.results.published import SOURCES, published
from train.run.metrics import read_metrics

MODEL, SEEDS, STEPS = DIGITS_RUNS
pytestmark = pytest.mark.xdist_group("results")  # one worker trains for all


@pytest.fixture
def runs(digits_runs, tmp_path) -> Path:
    """A copy of the real runs, for a test to change."""
    return shutil.copytree(digits_runs, tmp_path / "runs")


@pytest.fixture
def results(runs, capsys) -> Callable[..., dict[str, Any]]:
    """Runs the command on the copy; its `results.json`, with what was printed."""

    def call(*arguments: str) -> dict[str, Any]:
        assert main(["results", str(runs), *arguments]) == 0
        printed = capsys.readouterr()
        content = json.loads((runs / "results.json").read_text())
        return {**content, "out": printed.out, "err": printed.err}

    return call


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def forget(path: Path, *names: str) -> None:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in fields.items() if k not in names}))


def change_config(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", config={**content["config"], **fields})


def cells(markdown: str, row: int = 0) -> dict[str, str]:
    """A row of the table in a Markdown text, heading -> text."""
    lines = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    return dict(zip(map(str.strip, lines[0]), map(str.strip, lines[2 + row]), strict=True))


@pytest.mark.torch
def test_the_table_says_what_numpy_says_of_the_runs(runs, results):
    outcomes = [json.loads((runs / f"seed-{s}" / "result.json").read_text()) for s in SEEDS]
    errors = [outcome["error"] for outcome in outcomes]
    assert len(set(errors)) == 2
    content = results()
    (group,) = content["results"]
    expected = (np.mean(errors), np.std(errors, ddof=1), np.min(errors), np.max(errors))
    names = ("mean", "std", "min", "max")
    assert [group["error"][name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert group["torch_error"] == group["error"]  # of these runs no prediction differs
    assert group["standard_error"] == pytest.approx(
        np.sqrt(np.mean(errors) * (1 - np.mean(errors)) / 360), abs=1e-6
    )
    assert [entry["seed"] for entry in group["runs"]] == list(SEEDS)
    assert [entry["folder"] for entry in group["runs"]] == ["seed-111", "seed-222"]
    assert (group["data"], group["tested_on"], group["test_images"]) == ("digits", "test", 360)

    row = cells(content["out"])
    assert row["error %"] == f"{100 * expected[0]:.2f} ± {100 * expected[1]:.2f}"
    assert (row["min"], row["max"]) == tuple(f"{100 * value:.2f}" for value in expected[2:])
    assert (row["runs"], row["steps"], row["differ"]) == ("2", "24", "0")
    assert row["device"] == "1 cpu device"
    assert cells((runs / "results.md").read_text()) == row


def test_a_run_records_the_recipe_that_it_began_with(runs, results):
    for seed in SEEDS:
        content = json.loads((runs / f"seed-{seed}" / "config.json").read_text())
        assert (content["recipe"], content["asked"]) == ("digits", None)
    (group,) = results()["results"]
    assert (group["recipe"], group["schedule"]) == ("digits", "scaled")
    assert [entry["recipe"] for entry in group["runs"]] == ["digits"] * 2


def test_the_best_error_is_that_of_the_tests_on_the_way(runs, results):
    best = []
    for seed in SEEDS:
        lines = read_metrics(runs / f"seed-{seed}" / "metrics.jsonl")
        best.append(min(line["error"] for line in lines if line["kind"] == "test"))
    (group,) = results()["results"]
    assert group["best_error"]["mean"] == pytest.approx(np.mean(best), abs=1e-6)
    for seed in SEEDS:  # what the run itself says comes first
        change(runs / f"seed-{seed}" / "result.json", best_error=0.0, best_step=12)
    (group,) = results()["results"]
    assert [(entry["best_error"], entry["best_step"]) for entry in group["runs"]] == [(0, 12)] * 2


def test_of_a_run_that_averages_the_best_error_is_that_of_its_averages(runs, results):
    folder = runs / "seed-111"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    tests = [json.loads(line) for line in lines if '"test"' in line]
    best = tests[0] | {"ema_error": tests[0]["error"] / 2}
    others = [line | {"ema_error": line["error"] * 2} for line in tests[1:]]
    text = "".join(json.dumps(line) + "\n" for line in (best, *others))
    (folder / "metrics.jsonl").write_text(text)
    result = json.loads((folder / "result.json").read_text()) | {"weights": "ema", "error": 1.0}
    del result["best_error"], result["best_step"]
    (folder / "result.json").write_text(json.dumps(result))
    (group,) = results()["results"]
    (entry,) = [entry for entry in group["runs"] if entry["seed"] == 111]
    assert (entry["best_error"], entry["best_step"]) == (
        pytest.approx(best["ema_error"], abs=1e-6),
        best["step"],
    )


@pytest.mark.torch
def test_parameters_are_those_of_the_exported_network(runs, results):
    model = convert.load(runs / "seed-111" / "model.safetensors", backend="torch")
    count = sum(parameter.numel() for parameter in model.parameters())
    content = results()
    assert content["results"][0]["parameters"] == count
    assert cells(content["out"])["parameters"] == f"{count:,}"


def test_a_single_run_has_no_deviation(runs, results):
    shutil.rmtree(runs / "seed-222")
    content = results()
    assert content["results"][0]["error"]["std"] is None
    assert cells(content["out"])["error %"].endswith("± —")


def test_an_unfinished_run_is_shown_and_not_averaged_in(runs, results):
    before = results()["results"][0]["error"]
    folder = shutil.copytree(runs / "seed-111", runs / "seed-333")
    change_config(folder, seed=333, resume=True)
    (folder / "result.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]) + '{"step": 12, "ki')
    content = results()
    (group,) = content["results"]
    assert group["error"] == before
    assert [entry["finished"] for entry in group["runs"]] == [True, True, False]
    assert cells(content["out"])["runs"] == "2 of 3"
    assert "seed-333, step 8 of 24" in content["out"]
    assert "unfinished, not counted: seed-333, step 8" in (runs / "results.md").read_text()


def test_a_run_that_went_on_to_more_steps_does_not_count_by_its_old_result(runs, results):
    for seed in SEEDS:
        change(runs / f"seed-{seed}" / "config.json", total_steps=48)
    content = results()
    assert content["results"][0]["error"] is None
    row = cells(content["out"])
    assert (row["runs"], row["error %"], row["time"]) == ("0 of 2", "—", "—")
    assert "seed-222, step 24 of 48" in content["out"]


def test_runs_that_differ_in_more_than_the_seed_are_rows_of_their_own(runs, results):
    change_config(runs / "seed-222", learning_rate=0.05)
    content = results()
    assert [len(group["runs"]) for group in content["results"]] == [1, 1]
    assert [group["options"]["learning_rate"] for group in content["results"]] == [0.05, 0.1]
    assert cells(content["out"], row=0)["with"] == "learning_rate 0.05"
    for seed in SEEDS:  # as of before `config.json` said what was tested on
        forget(runs / f"seed-{seed}" / "config.json", "test_name", "test_images")
    change_config(runs / "seed-222", learning_rate=0.1, validation_size=360)
    content = results()  # another test set: no options are told apart, the data is
    assert [group["tested_on"] for group in content["results"]] == ["test", "train[1437:]"]
    change_config(runs / "seed-222", validation_size=None, data_dir="elsewhere", run_dir="moved")
    assert len(results()["results"]) == 1  # what does not change what is computed


def test_every_field_that_a_run_computes_with_makes_a_group_of_its_own():
    not_computed = {
        *("seed", "seeds", "seeds_mode", "run_dir", "resume", "overwrite", "data_dir", "wandb"),
        *("log_every_steps", "checkpoint_every_steps", "profile", "read_threads", "distributed"),
        *("coordinator", "process_id", "num_processes", "compile_cache", "compile_for", "json"),
    }
    names = {field.name for field in dataclasses.fields(Config)}
    assert set(computed_fields(Config())) == names - not_computed


def test_a_seed_counts_once(runs, results):
    before = results()["results"][0]["error"]
    shutil.copytree(runs / "seed-111", runs / "again")
    content = results()
    assert content["results"][0]["error"] == before
    assert content["results"][0]["not_counted"] == ["seed-111"]  # paths in order: again is first
    assert "with seed 111" in content["out"]


def test_damaged_and_foreign_files_are_named_and_skipped(runs, results):
    for name, text in (
        ("cut", '{"config": {'),
        ("foreign", '{"architectures": ["ResNetForImageClassification"]}'),
        ("future", json.dumps({"versions": {"flax-resnet": "9"}, "config": {"new": 1}})),
        ("list", "[]"),
    ):
        (runs / name).mkdir()
        (runs / name / "config.json").write_text(text)
    (runs / "bytes").mkdir()
    (runs / "bytes" / "config.json").write_bytes(b"\xff\xfe\x00")
    for name, text in (("result-cut", '{"error": 0.'), ("result-wrong", '{"error": 7.5}')):
        folder = shutil.copytree(runs / "seed-111", runs / name)
        (folder / "result.json").write_text(text)
    content = results()
    assert len(content["results"][0]["runs"]) == 2
    names = {"cut", "foreign", "future", "list", "bytes", "result-cut", "result-wrong"}
    assert content["skipped"].keys() == names
    for name in names:
        assert f"skipped {runs / name}: " in content["err"]
    assert "was not written by this trainer" in content["skipped"]["foreign"]
    assert "7.5" in content["skipped"]["result-wrong"]


_DEEP = "[" * 100_000
_DAMAGES: dict[str, dict[str, Any]] = {  # fields that are others; or a text in their place
    "config.json": {
        **{f"versions-{v}": {"versions": v} for v in (5, None, "flax-resnet")},
        **{f"images-{v}": {"train_images": v} for v in (0, -5, "x", None, 10**400, float("inf"))},
        **{f"steps-{v}": {"total_steps": v} for v in (0, [1], float("nan"))},
        **{f"test-{v}": {"test_images": v} for v in ("x", 0, [3])},
        "test-name": {"test_name": 5},
        "recipe": {"recipe": 5},
        **{f"asked-{type(v).__name__}": {"asked": v} for v in (5, {"protocol": "V"}, ["V"])},
        "fields": {"config": [1]},
        "deep": _DEEP,
    },
    "result.json": {
        **{f"parity-{type(v).__name__}": {"parity": v} for v in ([1], "x", {"torch_error": "x"})},
        **{f"seconds-{v}": {"seconds": v} for v in (float("nan"), float("inf"), -1, "x", None)},
        **{f"step-{v}": {"step": v} for v in (float("inf"), "x")},
        "best-step": {"best_step": float("inf")},
        "error": {"error": [0.5]},
        "deep-result": _DEEP,
    },
}


def test_a_damaged_run_is_skipped_with_its_reason_and_the_others_stay(runs, results):
    for file, damages in _DAMAGES.items():
        for name, damage in damages.items():
            folder = shutil.copytree(runs / "seed-111", runs / name[:20])
            if isinstance(damage, str):
                (folder / file).write_text(damage)
            else:
                change(folder / file, **damage)
    content = results("--plot")
    assert [run["folder"] for run in content["results"][0]["runs"]] == ["seed-111", "seed-222"]
    assert not content["results"][0]["not_counted"]
    for file, damages in _DAMAGES.items():
        for name in damages:
            assert content["skipped"][name[:20]].startswith(f"{file} is damaged"), name


def test_a_folder_that_cannot_be_read_is_named(of_nobody):
    (of_nobody / "runs" / "mine").mkdir(parents=True)
    (of_nobody / "runs" / "mine").chmod(0)
    found, skipped = find_runs([of_nobody / "runs"])
    assert not found
    assert skipped == {of_nobody / "runs" / "mine": "it cannot be read: Permission denied"}


def test_runs_behind_links_are_found_once_and_below_a_folder_of_any_name(runs, tmp_path, results):
    (runs / "wandb" / "checkpoints").mkdir(parents=True)
    (runs / "seed-111").rename(tmp_path / "far")
    (runs / "wandb" / "checkpoints" / "link").symlink_to(tmp_path / "far")
    (runs / "latest").symlink_to(runs / "seed-222")
    (runs / "circle").symlink_to(runs)
    shutil.copytree(tmp_path / "far", tmp_path / "far" / "checkpoints" / "copy")
    found, skipped = find_runs([runs])
    assert not skipped
    places = [run.folder.relative_to(runs).as_posix() for run in found]
    assert places == ["seed-222", "wandb/checkpoints/link"]
    (group,) = results("--plot")["results"]
    assert len(group["runs"]) == 2
    assert (runs / "curves.png").exists()


def test_images_that_could_not_be_tested_do_not_count(runs, results):
    for seed in SEEDS:
        change(runs / f"seed-{seed}" / "result.json", images=359)
    content = results()
    assert content["results"][0]["test_images"] == 359
    assert "359" in cells(content["out"])["data"]


def test_a_run_that_changed_on_the_way_or_began_with_weights_is_a_row_of_its_own(runs, results):
    starts = [{"step": 0}, {"step": 12, "changed": {"learning_rate": [0.4, 0.1]}}]
    change(runs / "seed-222" / "config.json", starts=starts)
    content = results()
    with_changes = {"changed": "learning_rate 0.4 to 0.1 at step 12"}
    assert [group["options"] for group in content["results"]] == [with_changes, {}]
    shutil.rmtree(runs / "seed-111")
    row = cells(results()["out"])  # alone it says so, too
    assert row["with"] == "changed learning_rate 0.4 to 0.1 at step 12"
    change(runs / "seed-222" / "config.json", starts=[{"step": 0, "weights": "imported weights"}])
    assert results()["results"][0]["options"] == {"from": "imported weights"}


def test_lines_that_are_no_metrics_are_left_out(runs, results):
    before = results("--plot")["results"]
    with (runs / "seed-111" / "metrics.jsonl").open("a") as file:
        for damage in ({"loss": "x"}, {"error": [0.1]}, {"step": True}, {"loss": 10**400}):
            line = {"step": 8, "kind": "test", "loss": 0.5, "error": 0.01, **damage}
            file.write(json.dumps(line) + "\n")
        file.write(_DEEP + "\n")
    assert results("--plot")["results"] == before


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["results", str(tmp_path), str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert "no run" in message
    assert "nowhere: there is no such folder" in message
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_part_of_the_test_set_has_its_standard_error_and_the_published_figure_beside(
    runs, results
):
    for seed in SEEDS:  # as of a run of CIFAR-10 on the first 1,000 test images
        folder = runs / f"seed-{seed}"
        change_config(folder, data="cifar10", model="ResNet20", epochs=160, max_steps=None)
        change(folder / "config.json", train_images=50_000, test_name="test", test_images=1000)
    change(runs / "seed-111" / "result.json", error=0.084, images=1000)
    change(runs / "seed-222" / "result.json", error=0.088, images=1000)
    content = results()
    (group,) = content["results"]
    assert group["standard_error"] == pytest.approx((0.086 * 0.914 / 1000) ** 0.5, abs=1e-6)
    row = cells(content["out"])
    assert row["error %"] == "8.60 ± 0.28 [±0.89]"
    assert row["data"] == "cifar10, tested on test (1,000 of 10,000 images)"
    assert row["published %"] == "8.75 (He 2015); 8.64 ± 0.16 (torch-resnet)"
    assert row["parameters"] == f"{find_spec('ResNet20').count_parameters(10):,}"
    assert "arXiv:1512.03385" in content["out"]


def test_what_is_published_is_found_by_the_network_not_the_name():
    assert [str(figure) for figure in published("cifar10", "PreActWideResNet28-10")] == [
        "3.89 (Zagoruyko 2016)"
    ]
    assert published("cifar10", "PreActWideResNet28-10-0") == published(
        "cifar10", "PreActWideResNet28-10-0.0"
    )
    assert published("digits", "ResNet20") == []
    assert {figure.source for figure in published("cifar100", "PreActResNet164")} <= set(SOURCES)


@pytest.fixture
def pictures(runs, results) -> dict[str, bytes]:
    results("--plot")
    return {path.name: path.read_bytes() for path in runs.glob("curves*")}


def test_the_curves_are_a_picture_with_text_as_text(pictures):
    assert pictures.keys() == {"curves.png", "curves.svg"}
    root = ElementTree.fromstring(pictures["curves.svg"])
    texts = {"".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("text")}
    labels = {"Loss", "Error", "Learning rate", "epoch", "wrong images (%)"}
    labels |= {f"{MODEL} (2 seeds)", "digits, tested on test (360 images)"}
    assert labels <= texts
    pixels = np.asarray(Image.open(io.BytesIO(pictures["curves.png"])).convert("RGB"))
    assert pixels.shape[1] > 1500
    blue = (np.abs(pixels.astype(int) - (0x00, 0x72, 0xB2)).sum(-1) < 30).mean()
    assert blue > 1e-3  # the lines


def test_equal_runs_give_equal_bytes(runs, results, pictures):
    written = {path.name: path.read_bytes() for path in runs.iterdir() if path.is_file()}
    assert {"results.json", "results.md"} < written.keys()
    results("--plot")
    assert written == {path.name: path.read_bytes() for path in runs.iterdir() if path.is_file()}


def test_a_curve_is_the_mean_and_the_range_over_the_seeds(runs):
    from train.results.curves import curve

    (group,) = group_runs(find_runs([runs])[0])
    tests = curve(group, "test", "loss")
    lines = [read_metrics(runs / f"seed-{seed}" / "metrics.jsonl") for seed in SEEDS]
    losses = np.array([[v["loss"] for v in run if v["kind"] == "test"] for run in lines])
    np.testing.assert_allclose(tests.mean, losses.mean(0))
    np.testing.assert_array_equal(tests.low, losses.min(0))
    np.testing.assert_array_equal(tests.high, losses.max(0))
    np.testing.assert_allclose(tests.epochs, np.array([12, 23, 24]) * 128 / 1437)
    training = curve(group, "train", "loss")  # steps 4 and 8, 12 to 20, 24: three epochs
    logged = np.array([[v["loss"] for v in run if v["kind"] == "train"] for run in lines])
    expected = [part.mean() for part in np.split(logged, (2, 5), axis=1)]
    np.testing.assert_allclose(training.mean, expected)
    exact = curve(group, "train", "loss", is_exact=True)
    np.testing.assert_allclose(exact.mean, logged.mean(0))


def test_curves_are_drawn_with_gaps_zeros_and_many_rows(runs, results):
    lines = (runs / "seed-111" / "metrics.jsonl").read_text()
    for number in range(8):
        folder = shutil.copytree(runs / "seed-111", runs / f"more-{number}")
        change_config(folder, learning_rate=0.2 + number)
        gone = re.sub(r'"(loss|error)": [^,}]+', r'"\1": null', lines, count=4)
        (folder / "metrics.jsonl").write_text(re.sub(r'"error": [\d.]+', '"error": 0.0', gone))
    for name in ("metrics.jsonl", "result.json"):
        (runs / "more-0" / name).unlink()
    results("--plot")
    svg = (runs / "curves.svg").read_text()
    for text in ("learning_rate 7.2 (1 seed)", "(unfinished, step 0 of 24)"):
        assert text in svg


def test_each_folder_has_one_picture_and_all_go_to_the_output(runs, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    places = [str(runs / f"seed-{seed}") for seed in SEEDS]
    assert main(["results", *places, "--plot", "-o", str(out)]) == 0
    names = {f"curves-seed-{seed}.{form}" for seed in SEEDS for form in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == {"results.json", "results.md", *names}
    (group,) = json.loads((out / "results.json").read_text())["results"]
    assert group["runs"][0]["folder"] == "../../runs/seed-111"
    assert "![Training curves](curves-seed-111.svg)" in (out / "results.md").read_text()


def test_without_matplotlib_the_curves_are_refused_before_anything_is_written(
    runs, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["results", str(runs), "--plot"]) == 2
    assert "flax-resnet[plot]" in capsys.readouterr().err
    assert not (runs / "results.json").exists()
    assert main(["results", str(runs)]) == 0


def test_a_terminal_has_a_table_of_its_width(runs, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Rich says that there is a terminal
    for width, wide in (("120", False), ("200", True)):
        monkeypatch.setenv("COLUMNS", width)
        assert main(["results", str(runs)]) == 0
        text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
        table = [line for line in text.splitlines() if line[:1] in "┏┃│└"]
        assert max(map(len, table)) <= int(width)
        assert MODEL in text
        assert ("1 cpu device" in text) == wide


def test_a_name_or_a_sign_that_the_encoding_has_not_is_written_out(runs):
    (runs / "seed-111").rename(runs / os.fsdecode(b"\xe9"))
    (runs / "seed-222" / "result.json").unlink()
    result = run("train", "results", runs, cwd=runs, PYTHONIOENCODING="ascii:strict")
    assert result.returncode == 0, result.stderr
    assert r"\xb1" in result.stdout  # of mean ± deviation
    assert "seed-222" in (runs / "results.md").read_text()
    assert json.loads((runs / "results.json").read_text())["results"][0]["runs"]
    (runs / "seed-222").rename(runs / os.fsdecode(b"\xff"))
    assert main(["results", str(runs)]) == 0
    assert r"unfinished, not counted: \udcff" in (runs / "results.md").read_text()


def test_an_output_that_is_a_file_is_refused(runs, capsys):
    (runs / "file").write_text("precious")
    assert main(["results", str(runs), "-o", str(runs / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (runs / "file").read_text() == "precious"
