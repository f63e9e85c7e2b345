"""Images that are read and decoded when a step needs them: files, crops, threads."""

import os

MOST_PIXELS = 2**28  # a header that says more is damaged, or would fill the memory
# OpenCV looks for it once, when it is imported, and would believe 2**30.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
