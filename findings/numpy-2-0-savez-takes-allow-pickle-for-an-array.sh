#!/usr/bin/env bash
# `numpy.savez(file, allow_pickle=False, **arrays)` is a safe call, or an array too many.
#
# Versions:  numpy 2.0.2 and 2.2.6
# Expected:  an option that one release of NumPy 2 has is refused by another that does not have it.
# Seen:      2.2 takes `allow_pickle` as the option of that name. 2.0 has no such option, and writes an
#            array `allow_pickle` of one bool into the file, without a word: weights that were saved so
#            have a tensor that no network has, and whoever loads them strictly is refused.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for release in 2.0.2 2.2.6; do
    "${PYTHON:-python3}" -m venv "$work/$release"
    "$work/$release/bin/python" -m pip install --quiet --disable-pip-version-check "numpy==$release"
done
cat > "$work/save.py" <<'PY'
import numpy as np

arrays = {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
np.savez("weights.npz", allow_pickle=False, **arrays)
with np.load("weights.npz") as file:
    names = sorted(file)
    print(np.__version__, names)
is_option = np.__version__.startswith("2.2")
assert names == (["conv1.weight"] if is_option else ["allow_pickle", "conv1.weight"])
PY
cd "$work"
for release in 2.0.2 2.2.6; do "$release/bin/python" save.py; done
