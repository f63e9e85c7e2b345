"""Images and labels: data sets in memory and streamed ones, decoding and random crops."""

import os

MOST_PIXELS = 2**28  # an image of more pixels is damaged, or would fill the memory
# OpenCV reads this when it is imported; its default is 2**30.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))
