#!/usr/bin/env bash
# optax's integer cross-entropy takes the label -1 as the last class, and a label too large as NaN.
#
# Versions:  optax 0.2.8, jax 0.10.2
# Expected:  -1, the usual mark of an image without a label, is refused, ignored or NaN as other
#            labels out of range are.
# Seen:      -1 is the loss of class 2 of 3; 3 and -4 are NaN.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 optax==0.2.8
cd "$work"
JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PY'
import jax.numpy as jnp
import numpy as np
import optax

logits = jnp.array([[0.0, 1.0, 5.0]])
loss = {
    label: float(
        optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([label]))[0]
    )
    for label in (-4, -1, 2, 3)
}
print(loss)
assert loss[-1] == loss[2]
assert np.isnan(loss[3]) and np.isnan(loss[-4])
PY
