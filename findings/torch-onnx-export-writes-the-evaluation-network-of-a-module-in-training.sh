#!/usr/bin/env bash
# torch.onnx.export of a module in training mode, with training=TRAINING, writes the evaluation network.
#
# Versions:  torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0
# Expected:  training=TrainingMode.TRAINING of a module whose `training` is True keeps BatchNorm's
#            batch statistics.
# Seen:      the file computes what the module computes in evaluation mode; the argument is ignored
#            without an error.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$work"
"$work/env/bin/python" - <<'PY'
import copy
import warnings

import numpy as np
import onnxruntime
import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).train()
images = torch.randn(8, 3, 8, 8)
train = copy.deepcopy(module)(images).detach().numpy()
evaluation = copy.deepcopy(module).eval()(images).detach().numpy()
torch.onnx.export(
    module, (images,), "m.onnx", training=torch.onnx.TrainingMode.TRAINING, verbose=False
)
session = onnxruntime.InferenceSession("m.onnx")
(found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
to_train, to_evaluation = (float(np.abs(found - y).max()) for y in (train, evaluation))
print(f"difference from training mode {to_train:.3g}, from evaluation mode {to_evaluation:.3g}")
assert to_train > 0.1
assert to_evaluation < 1e-5
PY
