#!/usr/bin/env bash
# The same picture, resized to the same size, has other pixels in another release of Pillow.
#
# Versions:  pillow 12.0.0 and 13.0.0
# Expected:  `Image.resize` filters rows first, then columns, and rounds to bytes between the two,
#            whatever the sizes: networks are compared on its pixels.
# Seen:      12.0.0 does. 13.0.0 filters columns first where that costs less, as here, where the
#            height shrinks to a ninth, so that the bytes differ.
#
# Fails where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > resize.py <<'PY'
import random

import PIL
from PIL import Image

width, height, size = 362, 332, (242, 36)
picture = Image.frombytes("L", (width, height), random.Random(0).randbytes(width * height))
direct = picture.resize(size, Image.Resampling.BICUBIC).tobytes()
for first, between in (("rows", (size[0], height)), ("columns", (width, size[1]))):
    halfway = picture.resize(between, Image.Resampling.BICUBIC)
    if halfway.resize(size, Image.Resampling.BICUBIC).tobytes() == direct:
        print(f"pillow {PIL.__version__}: {first} first")
PY
for release in 12.0.0 13.0.0; do
    "${PYTHON:-python3}" -m venv "$release"
    "$release/bin/python" -m pip install --quiet --disable-pip-version-check "pillow==$release"
    "$release/bin/python" resize.py | tee -a seen
done
diff seen - <<'END'
pillow 12.0.0: rows first
pillow 13.0.0: columns first
END
