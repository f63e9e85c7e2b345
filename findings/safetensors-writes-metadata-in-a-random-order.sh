#!/usr/bin/env bash
# safetensors writes equal content as different bytes: the order of its metadata is random.
#
# Versions:  safetensors 0.8.0
# Expected:  the same arrays and the same metadata are the same bytes in every call, so that files
#            can be compared by a checksum.
# Seen:      30 calls in one process write more than one file; reading them gives equal arrays and
#            metadata. With one entry of metadata all bytes are equal.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/env/bin/python" - <<'PY'
import numpy as np
from safetensors.numpy import save

array = {"w": np.zeros(3, np.float32)}
entries = {"format": "pt", "model": "ResNet20", "license": "mit", "author": "nobody"}
files = {save(array, entries) for _ in range(30)}
print(len(files), "different files of 30")
assert len(files) > 1
assert len({save(array, {"format": "pt"}) for _ in range(30)}) == 1
PY
