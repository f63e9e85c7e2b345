"""Images and labels: data sets in memory and streamed ones, their batches and views."""

import os

MOST_PIXELS = 2**28  # a header that says more is damaged, or would fill the memory
# OpenCV reads it once, when it is imported, and its default is 2**30.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
