"""Writes a model of either framework to a file."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from convert.files import write_weights
from convert.models import arrays_of, check, describe
from convert.preprocessing import stated_preprocessing
from convert.weights import Weights
from convert.wrappers import unwrap_module
from resnet_spec import Preprocessing


def save(
    path: str | os.PathLike[str],
    model: Any,
    *,
    preprocessing: Preprocessing | str | None = None,
    statistics_batch_size: int | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Writes either twin, with its description, to a file of one of `SUFFIXES`.

    The tensors have our names and torch's axes: torch's own loaders read them into the twin. The
    file appears whole, read back and compared, or not at all. A model knows neither its
    preprocessing nor the batch size of its running variances: give both, as `load_preprocessing`
    and `load_statistics_batch_size` return them. A text says a preprocessing as `resnet-convert
    import --preprocessing` takes it: "imagenet,size=160".

    Raises:
        ConversionError: the model cannot be described (own blocks, own head) or was changed since
            it was built, the preprocessing has another number of channels or classes, a value is
            NaN, infinite or a negative variance, the suffix is unknown, or the file reads back
            otherwise than it was written.
        OSError: the file cannot be written.
        ValueError: `statistics_batch_size` is not a positive integer, or the text is wrong.
    """
    model = unwrap_module(model)
    classifier = dataclasses.replace(describe(model), statistics_batch_size=statistics_batch_size)
    arrays = arrays_of(model)
    check(classifier, arrays)
    if isinstance(preprocessing, str):
        preprocessing, _ = stated_preprocessing(preprocessing, classifier.network)
    weights = Weights(arrays, classifier, preprocessing)
    write_weights(Path(path), weights, allow_nonfinite=allow_nonfinite)
