#!/usr/bin/env bash
# torch 2.13 cannot export to ONNX with onnxscript 0.5, and asks to install a module that no package is.
#
# Versions:  torch 2.13.0, onnx 1.20.0, onnxscript 0.5.7 and 0.6.0, numpy 2.4.6
# Expected:  an onnxscript that is too old is refused with the version that torch needs; or the export
#            uses what an older one has, as torch does not say which one it needs.
# Seen:      with 0.5.7 `torch.onnx.export` raises ModuleNotFoundError for
#            `onnxscript._framework_apis.torch_2_11`, a file of onnxscript 0.6 with the name of another
#            release of torch. With 0.6.0 the same lines write the file.
#
# Fails where this is no longer so. torch comes as pip finds it: on Linux, with CUDA, gigabytes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
pip install torch==2.13.0
cat > "$work/export.py" <<'PY'
import sys
import warnings

import torch

warnings.simplefilter("ignore")
module = torch.nn.Conv2d(3, 4, 3).eval()
images = torch.zeros(2, 3, 8, 8)
try:
    torch.onnx.export(module, (images,), "conv.onnx", dynamo=True, verbose=False)
except ModuleNotFoundError as error:
    print(sys.argv[1], error)
    assert sys.argv[1] == "0.5.7"
    assert "onnxscript._framework_apis.torch_2_11" in str(error), error
else:
    print(sys.argv[1], "exports")
    assert sys.argv[1] == "0.6.0"
PY
cd "$work"
for release in 0.5.7 0.6.0; do
    pip install onnx==1.20.0 "onnxscript==$release" numpy==2.4.6
    venv/bin/python export.py "$release" 2> stderr.txt || { cat stderr.txt; exit 1; }
done
