#!/usr/bin/env bash
# Orbax restores the saved shape where the target has another one, without an error.
#
# Versions:  orbax-checkpoint 0.12.8, jax 0.10.2, numpy 2.4.6
# Expected:  a restore into a target of shape (3, 2) of an array saved as (2, 3) raises, as the
#            target says what the caller needs.
# Seen:      both a NumPy array and a jax.ShapeDtypeStruct of shape (3, 2) come back as (2, 3); a
#            dtype that cannot hold the values (float32 300.5 into int8) is cast in
#            silence, too: 44.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 orbax-checkpoint==0.12.8 numpy==2.4.6
cd "$work"
JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PY'
import logging
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.WARNING)
folder = pathlib.Path("checkpoint").absolute()
saved = np.array([[0, 1, 2], [3, 4, 300.5]], np.float32)
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, {"kernel": saved})
    checkpointer.wait_until_finished()
    for target in (np.zeros((3, 2), np.float32), jax.ShapeDtypeStruct((3, 2), np.float32)):
        restored = checkpointer.restore(folder, {"kernel": target})["kernel"]
        print(type(target).__name__, target.shape, "->", restored.shape)
        assert restored.shape == (2, 3)
    narrow = checkpointer.restore(folder, {"kernel": np.zeros((2, 3), np.int8)})["kernel"]
    print("float32 300.5 -> int8", narrow[1, 2])
    assert narrow.dtype == np.int8
PY
