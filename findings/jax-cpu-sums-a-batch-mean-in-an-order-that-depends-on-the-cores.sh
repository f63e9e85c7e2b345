#!/usr/bin/env bash
# The mean of a batch has other bits on one core than on two, on the same processor.
#
# Versions:  jax 0.10.2
# Expected:  a compiled reduction gives the same bits wherever the program runs on the same
#            processor, however many cores it may use.
# Seen:      `taskset` to one core and to two changes the last bits of the mean over images and
#            pixels of a float32 batch, in 12 of 16 channels. With jax 0.12.0.1 they do not.
#
# Needs two cores. Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2
cd "$work"
cat > mean.py <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np

images = np.random.default_rng(0).standard_normal((128, 32, 32, 16)).astype(np.float32)
np.save(sys.argv[1], jax.jit(lambda x: jnp.mean(x, (0, 1, 2)))(images))
PY
export JAX_PLATFORMS=cpu
taskset -c 0 env/bin/python mean.py one.npy
taskset -c 0,1 env/bin/python mean.py two.npy
taskset -c 0 env/bin/python mean.py again.npy
env/bin/python - <<'PY'
import numpy as np

one, two, again = (np.load(f"{name}.npy") for name in ("one", "two", "again"))
print(f"{np.sum(one != two)} of {one.size} means differ, by {np.abs(one - two).max():.1e} at most")
assert np.array_equal(one, again)
assert not np.array_equal(one, two)
PY
