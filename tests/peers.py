"""Other packages' models, random in every leaf, imported as they can be beside a CPU torch."""

import functools
import os
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
from tests.twins import NUM_CLASSES, randomise, run_torch

_POSITIVE = ("scale", "var", "gamma", "moving_variance")


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


def _wide_resnet(name: str) -> Peer:
    spec = find_spec(name)
    network: Any = peer_networks.WideResNet(spec.stage_depths[0], spec.width)
    return Peer(network, network.tensors, lambda images: run_torch(network, images))


@functools.cache  # which takes Keras ten seconds
def _keras(name: str) -> Peer:
    applications = import_keras().applications
    model = getattr(applications, name)(
        weights=None, input_shape=(64, 64, 3), classifier_activation=None, classes=NUM_CLASSES
    )
    tensors = {
        layer.name: {v.name: jax.ShapeDtypeStruct(v.shape, v.dtype) for v in layer.weights}
        for layer in model.layers
    }
    tensors = _random_leaves({name: leaves for name, leaves in tensors.items() if leaves})
    for name, leaves in tensors.items():
        for variable in model.get_layer(name).weights:
            variable.assign(leaves[variable.name])
    trained = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    @jax.jit
    def apply(images: jax.Array) -> jax.Array:
        logits, _ = model.stateless_call(trained, fixed, images, training=False)
        return logits

    return Peer(model, tensors, lambda images: np.asarray(apply(jnp.asarray(images))))


def _haiku(name: str) -> Peer:
    import haiku

    network = getattr(haiku.nets, name.removeprefix("PreAct"))

    def forward(images: jax.Array) -> jax.Array:
        model = network(NUM_CLASSES, resnet_v2=name.startswith("PreAct"))
        return model(images, is_training=False)

    model = haiku.without_apply_rng(haiku.transform_with_state(forward))
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def init(key: jax.Array, images: jax.Array) -> Any:
        def training(images: jax.Array) -> jax.Array:
            model = network(NUM_CLASSES, resnet_v2=name.startswith("PreAct"))
            return model(images, is_training=True)

        return haiku.transform_with_state(training).init(key, images)

    params, state = jax.eval_shape(init, jax.random.key(0), images)
    tensors = _random_leaves({"params": params, "state": state})
    apply = jax.jit(lambda images: model.apply(tensors["params"], tensors["state"], images)[0])
    return Peer(model, tensors, lambda images: np.asarray(apply(jnp.asarray(images))))


def import_keras() -> Any:
    """Keras on its JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return keras


def _random_leaves(tree: Any) -> Any:
    """A tree of these shapes: kernels of variance 1 / fan in, the rest as `randomise` draws it."""
    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Any:
        if len(leaf.shape) > 1 and leaf.shape[:-1] != (1, 1, 1):  # which Haiku's vectors have
            bound = (3 / np.prod(leaf.shape[:-1])) ** 0.5
            return jnp.asarray(generator.uniform(-bound, bound, leaf.shape), jnp.float32)
        is_positive = path[-1].key in _POSITIVE or "var_ema" in str(path[-2:-1])
        low, high = (0.5, 1.5) if is_positive else (-0.5, 0.5)
        return jnp.asarray(generator.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


_MAKERS: dict[str, Callable[..., Peer]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "cifar": _cifar,
    "flax-imagenet": _flax_imagenet,
    "bonsai": _bonsai,
    "keras": _keras,
    "haiku": _haiku,
    "wide-resnet": _wide_resnet,
}
