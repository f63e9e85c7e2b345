#!/usr/bin/env bash
# A function that jax 0.12 exports for any batch size cannot be called with jax 0.10.2.
#
# Versions:  jax 0.12.0.1 and 0.10.2 (Python 3.12 or newer: PYTHON=... names it)
# Expected:  what `jax.export` serialises is versioned, so that a release that cannot read it says
#            which release wrote it, or it is lowered to what older releases read.
# Seen:      0.12.0.1 calls what 0.10.2 wrote; 0.10.2 fails on what 0.12.0.1 wrote, and its error
#            names neither release.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for release in 0.10.2 0.12.0.1; do
    "${PYTHON:-python3}" -m venv "$work/$release"
    "$work/$release/bin/python" -m pip install --quiet --disable-pip-version-check "jax==$release" flatbuffers==25.9.23
done
cd "$work"
cat > write.py <<'PY'
import jax
import jax.export
import jax.numpy as jnp

images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8"), jnp.float32)
exported = jax.export.export(jax.jit(lambda x: x.reshape(-1, 4).sum(1)))(images)
open("file-" + jax.__version__, "wb").write(exported.serialize())
PY
cat > read.py <<'PY'
import sys

import jax
import jax.export
import jax.numpy as jnp

writer = sys.argv[1]
try:
    out = jax.export.deserialize(open(f"file-{writer}", "rb").read()).call(jnp.ones((3, 8)))
except Exception as error:
    assert (writer, jax.__version__) == ("0.12.0.1", "0.10.2"), error
    assert "0.12" not in str(error) and "0.10" not in str(error), error
    print(f"{jax.__version__} of {writer}: {type(error).__name__}: {str(error)[:200]}")
else:
    assert (writer, jax.__version__) != ("0.12.0.1", "0.10.2")
    print(f"{jax.__version__} of {writer}: {out.tolist()}")
PY
export JAX_PLATFORMS=cpu
for release in 0.10.2 0.12.0.1; do "$release/bin/python" write.py; done
for release in 0.10.2 0.12.0.1; do
    for writer in 0.10.2 0.12.0.1; do "$release/bin/python" read.py "$writer"; done
done
