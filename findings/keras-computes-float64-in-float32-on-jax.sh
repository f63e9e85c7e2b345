#!/usr/bin/env bash
# A layer of Keras whose dtype is float64 computes in float32 on the JAX backend, and says float64.
#
# Versions:  keras 3.15.1, jax 0.10.2
# Expected:  with x64 on, BatchNormalization(dtype="float64") has rounding errors of float64, as its
#            weights and its result are float64; `keras.ops.add` of two float64 arrays is float64.
# Seen:      `keras.backend.result_type` of float64 is float32, whatever JAX is told. What asks it
#            computes in float32: BatchNormalization is 1e-7 off, and its result is cast to float64.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check keras==3.15.1 jax==0.10.2
cd "$work"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu JAX_ENABLE_X64=1 "$work/env/bin/python" - <<'PY'
import keras
import numpy as np

print("the type of two float64 arrays:", keras.backend.result_type("float64", "float64"))
assert keras.backend.result_type("float64", "float64") == "float32"

layer = keras.layers.BatchNormalization(dtype="float64", epsilon=1e-3)
layer.build((None, 3))
x = np.random.default_rng(0).normal(size=(4, 3))
y = np.asarray(layer(x, training=False))
exact = x / np.sqrt(1 + 1e-3)  # its first statistics are 0 and 1
error = np.abs(y - exact).max()
print("the result is", y.dtype, "and its largest error", error)
assert layer.gamma.dtype == "float64" and y.dtype == np.float64
assert 1e-9 < error < 1e-6
PY
