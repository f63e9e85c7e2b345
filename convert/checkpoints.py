"""The weights in a training run's folder: Orbax checkpoints with a description of the model."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from convert import leaves
from convert.description import parse_description
from convert.errors import ConversionError
from convert.files import Weights
from convert.models import build_flax
from resnet_spec import Preprocessing

# What `train.checkpoint` writes, and all that is read here: `<run>/checkpoints/<step>/<item>`.
FOLDER = "checkpoints"
MODEL_ITEM = "model"
DESCRIPTION_ITEM = "description"
PREPROCESSING = "preprocessing"  # a field of the description, beside the model's


def read_run(run: Path, step: int | None = None) -> Weights:
    """The weights of a run's newest checkpoint, or of one `step`, with torch's names and axes.

    Raises:
        ConversionError: there is no such checkpoint, or it is damaged.
    """
    import jax
    import orbax.checkpoint as ocp

    folder = run / FOLDER if (run / FOLDER).is_dir() else run
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ConversionError(f"{run} holds {wanted}; steps there: {steps or 'none'}")
    step = steps[-1] if step is None else step
    handlers: Any = {
        MODEL_ITEM: ocp.PyTreeCheckpointHandler(),
        DESCRIPTION_ITEM: ocp.JsonCheckpointHandler(),
    }
    try:
        with ocp.CheckpointManager(folder.resolve(), item_handlers=handlers) as manager:
            tree = manager.item_metadata(step)[MODEL_ITEM].tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(tree))
            items = manager.restore(
                step,
                args=ocp.args.Composite(
                    **{
                        MODEL_ITEM: ocp.args.PyTreeRestore(restore_args=as_numpy),
                        DESCRIPTION_ITEM: ocp.args.JsonRestore(),
                    }
                ),
            )
        description = items[DESCRIPTION_ITEM]
        classifier = parse_description(description, len(items[MODEL_ITEM]))
        preprocessing = description.get(PREPROCESSING)  # runs of older versions have none
        if preprocessing is not None:
            preprocessing = Preprocessing.from_json(preprocessing)
            preprocessing.check(classifier)
    except Exception as error:  # Orbax raises bare Exception, among others, for damaged files
        reason = str(error).strip().partition("\n")[0]
        raise ConversionError(
            f"{folder / str(step)} is not a whole checkpoint: {reason}"
        ) from error
    arrays = {
        leaves.torch_name(name): leaves.to_torch(name, array)
        for name, array in items[MODEL_ITEM].items()
    }
    return Weights(arrays, classifier, preprocessing)


def write_run(run: Path, weights: Weights) -> None:
    """A new run's folder with these weights at step 0; `resnet-train --resume` goes on from it.

    Raises:
        ConversionError: the folder has checkpoints already, or the model is not described.
    """
    import orbax.checkpoint as ocp

    from flax_resnet.variables import named_variables

    if weights.classifier is None:
        raise ConversionError("these weights do not say which model they are: give --model")
    folder = run / FOLDER
    if folder.exists():
        raise ConversionError(f"{run} holds checkpoints already: give a new folder")
    description = weights.classifier.to_json()
    if weights.preprocessing is not None:
        description[PREPROCESSING] = weights.preprocessing.to_json()
    model = build_flax(weights.classifier, weights.arrays)
    state = {name: variable.get_value() for name, variable in named_variables(model).items()}
    with contextlib.closing(ocp.CheckpointManager(folder.resolve())) as manager:
        manager.save(
            0,
            args=ocp.args.Composite(
                **{
                    MODEL_ITEM: ocp.args.StandardSave(state),
                    DESCRIPTION_ITEM: ocp.args.JsonSave(description),
                }
            ),
        )
        manager.wait_until_finished()
