#!/usr/bin/env bash
# pip installs flax 0.12.8 beside jax 0.12.0.1 and finds nothing wrong; it cannot be imported.
#
# Versions:  flax 0.12.8, jax 0.12.0.1 (Python 3.12 or newer: PYTHON=... names it)
# Expected:  a release of flax that does not work with a release of jax excludes it in its
#            requirements, so that pip refuses the pair or takes another.
# Seen:      `pip install` and `pip check` succeed, `from flax import nnx` raises. 0.12.10 works with both.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check flax==0.12.8 jax==0.12.0.1
cd "$work"
JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PY'
import subprocess
import sys

check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
print("pip check:", check.stdout.strip())
assert check.returncode == 0
try:
    from flax import nnx  # noqa: F401
except Exception as error:
    print("from flax import nnx:", type(error).__name__, error)
else:
    raise SystemExit("it can be imported")
PY
