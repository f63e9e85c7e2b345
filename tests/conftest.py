"""Several CPU devices, float64, and a single thread of torch's for all tests."""

import ctypes
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before JAX starts: a pmapped step must always run on more than one device.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
)
# Where libtpu is installed, to compile for TPUs, JAX would look for one and complain on stderr.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Before torch starts: two workers' threads on two cores wait for each other in busy loops, up to
# 50 times as long as one thread computes. The processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import jax
import pytest

from tests import compile_cache
from tests.commands import Process, run
from tests.torch_or_none import import_torchvision, torch
from train.run.compile_cache import prune

jax.config.update("jax_enable_x64", True)
# Compiling is most of the tests' time: workers, and the processes they start, share what is done.
_cache = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compile_cache.folder()))
jax.config.update("jax_compilation_cache_dir", _cache)


@pytest.fixture(autouse=True)
def _seeded():
    if torch is not None:
        torch.manual_seed(0)


_MOST_MEMORY = 4 * 2**30  # bytes: two workers, and what they start, fit a machine of 16 GB


@pytest.fixture(autouse=True)
def _frugal() -> Iterator[None]:
    """Programs compiled for earlier tests, hundreds of deep networks', go before memory is full."""
    yield
    if _resident() > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system


@pytest.fixture(autouse=True)
def _ends_what_it_started() -> Iterator[None]:
    """No process in the background outlives its test, though that ran out of time."""
    yield
    Process.end_all()


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell by a file."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


@pytest.fixture(scope="session")
def timm() -> Any:
    import_torchvision()
    import timm

    return timm


@pytest.fixture(scope="session")
def transformers() -> Any:
    import_torchvision()
    import transformers

    return transformers


@pytest.fixture
def of_nobody() -> Iterator[Path]:
    """A folder, while this process is a user's whose permissions count: for root none do."""
    is_root, nobody = os.geteuid() == 0, 65534
    with tempfile.TemporaryDirectory() as name:
        if is_root:
            os.chown(name, nobody, nobody)
            os.seteuid(nobody)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)
            for path in Path(name).rglob("*"):  # each before what is in it
                path.chmod(0o700)


DIGITS_RUNS = ("WideResNet16-1-0.0", (111, 222), 24)  # two epochs of digits and a batch


@pytest.fixture(scope="session")
def digits_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real run for each seed, for tests of the group `results` to copy."""
    folder = tmp_path_factory.mktemp("trained")
    model, seeds, steps = DIGITS_RUNS
    arguments = ("digits", "--model", model, "--max-steps", str(steps), "--log-every-steps", "4")
    for seed in seeds:
        place = ("--seed", str(seed), "--run-dir", f"runs/seed-{seed}")
        result = run("train", *arguments, *place, cwd=folder)
        assert result.returncode == 0, result.stderr
        shutil.rmtree(folder / "runs" / f"seed-{seed}" / "checkpoints")
    return folder / "runs"


@pytest.fixture
def made(digits_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a copy of the real runs on digits for a test to change."""
    shutil.copytree(digits_runs, tmp_path / "made" / "runs")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Once for all workers, before they start."""
    if not hasattr(session.config, "workerinput"):
        prune(compile_cache.folder().parent)


class _File(pytest.Module):
    """A file of tests, skipped whole where it imports torch and there is none."""

    def collect(self) -> Any:
        try:
            return super().collect()
        except self.CollectError as error:
            if torch is None and "No module named 'torch'" in str(error):
                pytest.skip("needs torch", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return _File.from_parent(parent, path=module_path)


# Those of minutes come first: one that begins last leaves the other worker without work.
_LONGEST = (
    *("test_processes", "test_torture", "test_benchmarks", "test_docs", "test_damage"),
    *("test_streamed_runs", "test_parity"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="tests that are marked full, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the order of all other tests."""
    if not config.getoption("--full"):
        rest = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=rest)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    for item in items:
        if torch is None and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip("needs torch"))
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(_LONGEST)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the matrix of layouts, models and directions, whichever process proved them."""
    rows = {
        value
        for report in terminalreporter.stats.get("passed", ())
        for name, value in report.user_properties
        if name == "matrix"
    }
    if rows:
        terminalreporter.section("layout, model, directions: largest relative error")
        for row in sorted(rows):
            terminalreporter.write_line(row)
