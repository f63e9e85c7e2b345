#!/usr/bin/env bash
# JAX writes a program that was compiled ahead for a TPU to its compilation cache, and cannot read
# it again.
#
# Versions:  jax 0.10.2, libtpu 0.0.42.1, on Linux with an x86 processor and without a TPU
# Expected:  what is compiled for the devices of `jax.experimental.topologies` is either read from
#            the cache the second time, or not written to it.
# Seen:      the first process writes an entry. Each later one finds it, warns "Error reading
#            persistent compilation cache entry", with "PjRtCompiler must be constructed with a
#            Client to call DeserializeLoadedExecutable", and compiles again.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 libtpu==0.0.42.1
cd "$work"
cat > compile.py <<'PY'
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

chip = topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
matrix = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=SingleDeviceSharding(chip))
jax.jit(jnp.matmul).lower(matrix, matrix).compile()
PY
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
export TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost
export JAX_COMPILATION_CACHE_DIR="$work/cache" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
"$work/env/bin/python" compile.py 2> first.txt
ls cache
"$work/env/bin/python" compile.py 2> second.txt
grep -o "Error reading persistent .*" second.txt
if grep -q "Error reading" first.txt; then exit 1; fi
grep -q "must be constructed with a Client" second.txt
