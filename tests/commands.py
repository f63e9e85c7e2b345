"""Running the two command lines as a user does: real processes in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

LONGEST = 900  # seconds: no command of a test may hang the checks


def run(
    module: str, *arguments: str | Path, cwd: Path, devices: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments`, on some CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": flags, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST,
    )


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
