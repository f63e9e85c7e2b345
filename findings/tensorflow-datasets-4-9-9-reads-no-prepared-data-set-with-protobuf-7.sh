#!/usr/bin/env bash
# tensorflow-datasets 4.9.9 can be installed with protobuf 7, and then reads no prepared data set.
#
# Versions:  tensorflow-datasets 4.9.9 and 4.9.10, protobuf 7.34.0, importlib_resources 6.5.2
# Expected:  pip takes a protobuf that the package works with, as the range of its metadata promises.
# Seen:      4.9.9 sets no upper end, and `pip check` is content. `tfds.builder` fails where the data
#            set is prepared, as its `dataset_info.json` lists splits: a field descriptor of protobuf 7
#            has no attribute `label`. 4.9.10 reads it.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/open.py" <<'PY'
import json
import sys
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

split = {"name": "train", "shardLengths": ["3"], "numBytes": "100"}
info = {"name": "mnist", "version": "3.0.1", "fileFormat": "array_record", "splits": [split]}
try:
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "mnist", "3.0.1")
        prepared.mkdir(parents=True)
        (prepared / "dataset_info.json").write_text(json.dumps(info))
        builder = tfds.builder("mnist", data_dir=folder, try_gcs=False)
        print(sys.argv[1], builder.info.splits["train"].num_examples, "images")
except Exception as error:
    print(sys.argv[1], type(error).__name__, str(error)[-120:])
    assert sys.argv[1] == "4.9.9"
    assert "has no attribute 'label'" in str(error), error
else:
    assert sys.argv[1] == "4.9.10"
PY
for release in 4.9.9 4.9.10; do
    "${PYTHON:-python3}" -m venv "$work/$release"
    python="$work/$release/bin/python"
    "$python" -m pip install --quiet --disable-pip-version-check \
        "tensorflow-datasets==$release" protobuf==7.34.0 importlib_resources==6.5.2
    "$python" -m pip check
    "$python" "$work/open.py" "$release" 2> "$work/stderr.txt" || { cat "$work/stderr.txt"; exit 1; }
done
