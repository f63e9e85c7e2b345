"""Running the two command lines: in processes of their own, as a user does, or in this one."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

LONGEST = 900  # seconds: no command of a test may hang the checks


def run(
    module: str,
    *arguments: str | Path,
    cwd: Path,
    devices: int = 1,
    limit: float = LONGEST,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments`, on some CPU devices, for `limit` seconds at most."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": flags, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=limit,
    )


def run_here(
    module: str, *arguments: str | Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The same command in this process, on its eight devices and without seconds of imports."""
    main = importlib.import_module(f"{module}.__main__").main
    words = [*map(str, arguments)]
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            code = main(words)
        except SystemExit as error:  # of --help, or of an option that does not exist
            code = error.code
    return subprocess.CompletedProcess(words, int(code or 0), out.getvalue(), err.getvalue())


class Process(subprocess.Popen[Any]):
    """A process in the background, which does not outlive the test that started it."""

    _started: list["Process"] = []

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._started.append(self)

    def __exit__(self, *raised: Any) -> None:
        self.kill()  # else an error in the block would wait until the process ends
        super().__exit__(*raised)

    @classmethod
    def end_all(cls) -> None:
        while cls._started:
            process = cls._started.pop()
            process.kill()
            process.wait()


def run_unread(module: str, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose output nobody reads: `| head` that has left."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=LONGEST,
    )
    os.close(writer)
    return result.returncode, result.stderr


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2 and a clear message, without a traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()
    for part in parts:
        assert part in result.stderr
