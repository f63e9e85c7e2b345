"""A state dict says, where torch keeps the versions of layers, which network it is of."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from resnet_spec import ClassifierSpec, ResNetSpec
from resnet_spec.description import DESCRIPTION_KEY, decode, encode
from torch_resnet.edits import differences_from_row


def describe_weights(
    model: Any, state_dict: Any, prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Writes it down, as a hook of `state_dict`.

    Not that of a network that was edited: it is no longer the one in its row.
    """
    if model.spec is None or differences_from_row(model):
        return
    head = model.head
    is_linear = isinstance(head, nn.Linear)
    classifier = ClassifierSpec(
        model.spec,
        head.out_features if is_linear else None,
        head.bias is not None if is_linear else True,
    )
    local_metadata[DESCRIPTION_KEY] = encode(classifier)


def list_differences_of_weights(
    spec: ResNetSpec | None, local_metadata: Mapping[str, Any]
) -> list[str]:
    """What the network that weights are of computes otherwise, and what to do about it.

    Names and shapes that differ are torch's to refuse, or not where it is not to be strict.
    """
    text = local_metadata.get(DESCRIPTION_KEY)
    fields = None if text is None else decode(text)["model"]
    if fields is None or spec is None:
        return []
    differences = spec.differences(ClassifierSpec.from_json(fields).network, unseen=True)
    problems = [f"weights of another network: {difference}" for difference in differences]
    return [*problems, "to load them all the same, del state_dict._metadata"] if problems else []
