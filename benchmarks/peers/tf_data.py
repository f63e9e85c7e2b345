"""tf.data's training view of JPEGs; the script runs where TensorFlow is, and nothing of ours.

`python tf_data.py FOLDER SIZE BATCH`: FOLDER holds the images as NUMBER-LABEL.jpg. For every line
"RESAMPLING COUNT" that it reads it makes COUNT batches, and answers by a line of its own.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Resampling = str  # "area", the mean of the pixels as ours; "bilinear", TensorFlow's default


class TfData:
    """tf.data in a process of another Python, which inherits this one's cores.

    Args:
        python: an interpreter that has TensorFlow. folder: of the images.
        size: height and width of a view. batch_size: images in a batch.

    Raises:
        RuntimeError: here or when called, where the other process ended; with its last words.
    """

    def __init__(self, python: str, folder: Path, size: int, batch_size: int):
        self._python, self._log = python, folder / "tf_data.log"
        command = [python, __file__, str(folder), str(size), str(batch_size)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._wait()

    def __call__(self, resampling: Resampling, batches: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{resampling} {batches}\n")
        self._process.stdin.flush()
        self._wait()

    def close(self) -> None:
        """Ends the other process."""
        self._process.communicate()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            lines = self._log.read_text().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{self._python}: {lines[-1]}")


def main(folder: Path, size: int, batch_size: int) -> None:
    """Answers the lines of the standard input."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # it is the processor that decodes
    path = folder / "images.tfrecord"
    _write(path, sorted(folder.glob("*.jpg")))
    datasets = {name: _dataset(path, size, batch_size, name) for name in ("area", "bilinear")}
    print("ready", flush=True)
    for line in sys.stdin:
        resampling, batches = line.split()
        for _ in datasets[resampling].take(int(batches)):
            pass
        print("done", flush=True)


def _write(path: Path, images: Sequence[Path]) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images:
            label = int(image.stem.partition("-")[2])
            features = {
                "image": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[image.read_bytes()])
                ),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def _dataset(path: Path, size: int, batch_size: int, resampling: Resampling) -> Any:
    import tensorflow as tf

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def view(record: Any) -> Any:
        example = tf.io.parse_single_example(record, features)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(example["image"]),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(example["image"], window, channels=3)
        image = tf.image.resize(image, [size, size], method=resampling)
        image = tf.image.random_flip_left_right(tf.cast(tf.round(image), tf.uint8))
        return image, tf.cast(example["label"], tf.int32)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # as there is one core
    options.threading.max_intra_op_parallelism = 1
    records = tf.data.TFRecordDataset(str(path)).repeat()
    batches = records.map(view, num_parallel_calls=1).batch(batch_size)
    return batches.prefetch(1).with_options(options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
