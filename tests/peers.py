"""Other packages' models, random in every leaf, imported as they can be beside a CPU torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.peers import linen_resnet
from resnet_spec import find_spec
from tests import peer_networks
from tests.torch_or_none import import_torchvision
from tests.twins import randomise, run_torch


@dataclass(frozen=True)
class Peer:
    """A model of another package: its tensors, and its own forward pass for (n, h, w, c)."""

    model: Any
    tensors: Any
    logits: Callable[[np.ndarray], np.ndarray]


def make_peer(layout: str, name: str, **options: Any) -> Peer:
    """The model of a name as a layout's package has it, in eval mode."""
    return _MAKERS[layout](name, **options)


def import_timm() -> Any:
    """timm, which imports torchvision."""
    import_torchvision()
    import timm

    return timm


def _torch_peer(model: torch.nn.Module) -> Peer:
    randomise(model)
    model.eval()
    return Peer(model, model.state_dict(), lambda images: run_torch(model, images))


def _torchvision(name: str) -> Peer:
    theirs = {"WideResNet50-2": "wide_resnet50_2", "WideResNet101-2": "wide_resnet101_2"}
    function = theirs.get(name, name.lower())
    return _torch_peer(getattr(import_torchvision().models, function)(weights=None))


def _timm(name: str) -> Peer:
    if name.startswith("Wide"):
        theirs = f"wide_{name.removeprefix('Wide').lower().replace('-', '_')}"
    else:
        theirs = name.lower().replace("preactresnet", "resnetv2_")
    return _torch_peer(import_timm().create_model(theirs))


def _transformers(name: str, **options: Any) -> Peer:
    import_torchvision()  # as transformers does, where it is there
    from transformers import ResNetConfig, ResNetForImageClassification

    spec = find_spec(name)
    expansion = {"basic": 1, "bottleneck": 4}[spec.block]
    config = ResNetConfig(
        layer_type=spec.block,
        depths=list(spec.stage_depths),
        hidden_sizes=[planes * expansion for planes in spec.stage_planes],
        **{"num_labels": 1000, **options},
    )
    model = ResNetForImageClassification(config)
    peer = _torch_peer(model)

    class Logits(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return model(images).logits

    return Peer(model, peer.tensors, lambda images: run_torch(Logits(), images))


def _cifar(name: str) -> Peer:
    depths = find_spec(name).stage_depths
    return _torch_peer(peer_networks.CifarResNet(depths, "A" if len(depths) == 3 else "B"))


def _flax_imagenet(name: str) -> Peer:
    spec = find_spec(name)
    block = {
        "basic": linen_resnet.ResNetBlock,
        "bottleneck": linen_resnet.BottleneckResNetBlock,
    }[spec.block]
    model = linen_resnet.LinenResNet(spec.stage_depths, block)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = _random_leaves(shapes)
    return Peer(model, variables, lambda images: np.asarray(model.apply(variables, images)))


def _bonsai(name: str) -> Peer:
    model = peer_networks.BonsaiResNet(find_spec(name).stage_depths)
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, _random_leaves(nnx.to_pure_dict(state)))
    nnx.update(model, state)
    tensors = nnx.to_pure_dict(nnx.state(model))
    return Peer(model, tensors, lambda images: np.asarray(model(jnp.asarray(images))))


def _random_leaves(tree: Any) -> Any:
    """A tree of these shapes: kernels of variance 1 / fan in, the rest as `randomise` draws it."""
    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Any:
        if len(leaf.shape) > 1:
            bound = (3 / np.prod(leaf.shape[:-1])) ** 0.5
            return jnp.asarray(generator.uniform(-bound, bound, leaf.shape), jnp.float32)
        low, high = (0.5, 1.5) if path[-1].key in ("scale", "var") else (-0.5, 0.5)
        return jnp.asarray(generator.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


_MAKERS: dict[str, Callable[..., Peer]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "cifar": _cifar,
    "flax-imagenet": _flax_imagenet,
    "bonsai": _bonsai,
}
