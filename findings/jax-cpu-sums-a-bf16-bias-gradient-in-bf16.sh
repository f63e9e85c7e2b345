#!/usr/bin/env bash
# On CPU, XLA sums the gradient of a bfloat16 bias in bfloat16: 128 times too small.
#
# Versions:  jax 0.10.2, flax 0.12.8
# Expected:  the gradient of sum(conv(x) + b) with respect to b is the number of positions, 128 *
#            32 * 32 = 131072, to the 8 bits of bfloat16; `jnp.sum` of a bfloat16 array accumulates
#            in float32 and gives just that.
# Seen:      1024: the sum stops where one more 1 no longer changes a bfloat16 number. Flax's
#            avg_pool of ones over 56 x 56 gives 0.326 for the same reason.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 flax==0.12.8
cd "$work"
JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
from flax import linen, nnx

images = jnp.ones((128, 32, 32, 3), jnp.bfloat16)
model = nnx.Conv(3, 4, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))


def loss(model):
    return model(images).astype(jnp.float32).sum()


gradient = float(nnx.grad(loss)(model)["bias"].get_value()[0])
print("bias gradient", gradient, "of", 128 * 32 * 32)
assert gradient == 1024
assert float(jnp.ones(128 * 32 * 32, jnp.bfloat16).sum()) == 131072
mean = float(linen.avg_pool(jnp.ones((1, 56, 56, 1), jnp.bfloat16), (56, 56))[0, 0, 0, 0])
print("avg_pool of ones", mean)
assert mean < 0.5
PY
