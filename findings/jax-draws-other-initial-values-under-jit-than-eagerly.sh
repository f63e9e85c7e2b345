#!/usr/bin/env bash
# The initial values of a layer differ in the last bits between jit and eager, and between releases.
#
# Versions:  jax 0.10.2 and 0.12.0.1 (Python 3.12 or newer: PYTHON=... names it)
# Expected:  the same key, shape and initialiser give the same bits, compiled or not: random numbers
#            are drawn by integers.
# Seen:      in 0.10.2 `variance_scaling` under jit differs from eager in half of the values, by up to
#            two units in the last place; in 0.12.0.1 both are what 0.10.2 draws under jit.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for release in 0.10.2 0.12.0.1; do
    "${PYTHON:-python3}" -m venv "$work/$release"
    "$work/$release/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$release"
done
cd "$work"
cat > draw.py <<'PY'
import jax
import numpy as np

draw = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
shape, key = (3, 3, 64, 64), jax.random.key(0)
eager = np.asarray(draw(key, shape))
jitted = np.asarray(jax.jit(lambda key: draw(key, shape))(key))
np.save(f"eager-{jax.__version__}.npy", eager)
np.save(f"jit-{jax.__version__}.npy", jitted)
PY
export JAX_PLATFORMS=cpu
for release in 0.10.2 0.12.0.1; do "$release/bin/python" draw.py; done
0.10.2/bin/python - <<'PY'
import itertools

import numpy as np

names = [f"{kind}-{release}" for release in ("0.10.2", "0.12.0.1") for kind in ("eager", "jit")]
drawn = {name: np.load(f"{name}.npy") for name in names}
differing = {}
for one, other in itertools.combinations(names, 2):
    units = np.abs(drawn[one].view(np.int32) - drawn[other].view(np.int32))
    differing[one, other] = int((units > 0).sum())
    print(f"{one}, {other}: {differing[one, other]} of {units.size} values, {units.max()} ulp")
assert differing["eager-0.10.2", "jit-0.10.2"] > 0
assert differing["eager-0.12.0.1", "jit-0.12.0.1"] == 0
assert differing["jit-0.10.2", "eager-0.12.0.1"] == 0
PY
