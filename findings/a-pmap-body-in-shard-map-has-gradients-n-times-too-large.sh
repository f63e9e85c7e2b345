#!/usr/bin/env bash
# A function that is right under jax.pmap gives gradients N times too large under jax.shard_map.
#
# Versions:  jax 0.10.2
# Expected:  `pmean(grad(loss)(w))` of a replicated w and a split batch is the same number under
#            pmap and shard_map.
# Seen:      2 under pmap, 16 on 8 devices under shard_map with its default check_vma=True: the
#            gradient of a replicated input is summed over the devices already, and pmean of equal
#            values changes nothing. check_vma=False gives 2.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2
cd "$work"
JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PY'
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


def body(w, x):
    return jax.lax.pmean(jax.grad(lambda w: jnp.mean((w * x) ** 2))(w), "d")


w, x = jnp.float32(1), jnp.ones((8, 4), jnp.float32)
mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
split = functools.partial(jax.shard_map, body, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
found = {
    "pmap": float(jax.pmap(body, axis_name="d", in_axes=(None, 0))(w, x)[0]),
    "shard_map": float(jax.jit(split())(w, x)),
    "shard_map, check_vma=False": float(jax.jit(split(check_vma=False))(w, x)),
}
print(found)
assert list(found.values()) == [2, 16, 2]
PY
