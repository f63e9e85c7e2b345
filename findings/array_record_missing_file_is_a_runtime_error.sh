#!/usr/bin/env bash
# array_record tells a missing file, a truncated one and a damaged record by the same exception.
#
# Versions:  array_record 0.8.6, Python 3.11
# Expected:  a file that is not there is a FileNotFoundError, or another OSError with its number, as
#            of `open`: a loader that skips damaged records would still stop at it.
# Seen:      a RuntimeError for all three, which only its text tells apart.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check array_record==0.8.6
cd "$work"
cat > try.py <<'PY'
import random
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

writer = ArrayRecordWriter("whole", "group_size:1")
for number in range(50):
    writer.write(random.Random(number).randbytes(10_000))
writer.close()
content = Path("whole").read_bytes()
Path("truncated").write_bytes(content[: len(content) // 2])
middle = len(content) // 2
Path("damaged").write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


def read(path):
    reader = ArrayRecordReader(path)
    return [reader.read([number]) for number in range(50)]


assert len(read("whole")) == 50
for path in ("missing", "truncated", "damaged"):
    try:
        read(path)
    except Exception as error:
        print(f"{path}: {type(error).__name__}, an OSError: {isinstance(error, OSError)}: {error}"[:150])
        assert type(error) is RuntimeError, path
    else:
        raise SystemExit(f"{path} was read")
PY
"$work/env/bin/python" try.py
