#!/usr/bin/env bash
# Flax NNX's attention computes in float64, but for its softmax, which is in float32.
#
# Versions:  jax 0.10.2, flax 0.12.8
# Expected:  with x64 on, a MultiHeadAttention of float64 agrees with another way of writing it to
#            rounding of float64; whether it has a dropout, switched off, makes no difference.
# Seen:      without a dropout it takes `jax.nn.dot_product_attention`, whose softmax is in float32
#            and whose result has the dtype float64: 1e-7 of the largest value off. With a dropout
#            that is switched off it takes another way, all of which is in float64.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 flax==0.12.8
cd "$work"
JAX_PLATFORMS=cpu JAX_ENABLE_X64=1 "$work/env/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
from flax import nnx

x = jax.random.normal(jax.random.key(0), (3, 6, 8), jnp.float64)


def attend(rate):
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "decode": False}
    layer = nnx.MultiHeadAttention(
        2, 8, 8, dropout_rate=rate, deterministic=True, rngs=nnx.Rngs(0), **options
    )
    return layer(x)


plain, with_dropout = attend(0.0), attend(0.5)
assert plain.dtype == with_dropout.dtype == jnp.float64
difference = float(jnp.abs(plain - with_dropout).max() / jnp.abs(plain).max())
print("without a dropout and with one that is off", difference)
assert 1e-9 < difference < 1e-6

query, key, value = (jax.random.normal(jax.random.key(i), (1, 6, 2, 4), jnp.float64) for i in range(3))
weights = jax.nn.softmax(jnp.einsum("nqhc,nkhc->nhqk", query, key) / 2)
written_out = jnp.einsum("nhqk,nkhc->nqhc", weights, value)
found = jax.nn.dot_product_attention(query, key, value)
difference = float(jnp.abs(found - written_out).max() / jnp.abs(written_out).max())
print("jax.nn.dot_product_attention", found.dtype, difference)
assert found.dtype == jnp.float64
assert 1e-9 < difference < 1e-6
PY
