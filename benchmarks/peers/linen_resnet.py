"""A ResNet written with linen as Flax's ImageNet example has it, and a pmapped step to train it.

Names, padding and strides are the example's: its layout in `convert` is read from this network.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.stages import Lowered

from resnet_spec import find_spec

_AXIS = "batch"


class _Block(linen.Module):
    planes: int
    stride: int
    conv: Any
    norm: Any


class ResNetBlock(_Block):
    """Its class name is part of the layout."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        y = linen.relu(self.norm()(self.conv(self.planes, (3, 3), self.stride)(x)))
        y = self.norm()(self.conv(self.planes, (3, 3))(y))
        return _add(self, x, y)


class BottleneckResNetBlock(_Block):
    """Its class name is part of the layout."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        y = linen.relu(self.norm()(self.conv(self.planes, (1, 1))(x)))
        y = linen.relu(self.norm()(self.conv(self.planes, (3, 3), self.stride)(y)))
        y = self.norm()(self.conv(self.planes * 4, (1, 1))(y))
        return _add(self, x, y)


def _add(block: Any, x: Any, y: Any) -> Any:
    if x.shape != y.shape:
        x = block.conv(y.shape[-1], (1, 1), block.stride, name="conv_proj")(x)
        x = block.norm(name="norm_proj")(x)
    return linen.relu(x + y)


class LinenResNet(linen.Module):
    """Strided convolutions and the pool pad SAME, the first convolution evenly.

    `small_images` is no part of the example: a 3x3 stem of 16 planes, for 32x32 pixels.
    """

    depths: tuple[int, ...]
    block: Callable[..., Any]
    num_classes: int = 1000
    dtype: Any = jnp.float32
    small_images: bool = False

    @linen.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        conv = functools.partial(linen.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            linen.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        planes = 16 if self.small_images else 64
        size, stride, edge = (3, 1, 1) if self.small_images else (7, 2, 3)
        edges = [(edge, edge)] * 2
        x = conv(planes, (size, size), stride, padding=edges, name="conv_init")(x)
        x = linen.relu(norm(name="bn_init")(x))
        if not self.small_images:
            x = linen.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(planes * 2**stage, stride, conv=conv, norm=norm)(x)
        return linen.Dense(self.num_classes, dtype=self.dtype)(jnp.mean(x, (1, 2)))


class LinenTraining:
    """The network and a step of its training, on each device's share of a batch.

    Args:
        name: of a network of the table that is neither wide (of width 1 it may be) nor
            pre-activated.
        precision: bf16 or f32, of the layers; parameters are float32.
    """

    def __init__(self, name: str, *, num_classes: int, precision: str):
        row = find_spec(name)
        block = {"basic": ResNetBlock, "bottleneck": BottleneckResNetBlock}[row.block]
        dtype = {"bf16": jnp.bfloat16, "f32": jnp.float32}[precision]
        self._model = LinenResNet(row.stage_depths, block, num_classes, dtype, row.small_images)
        self._optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))

    def lower(self, devices: Sequence[Any], images: int, image_size: int) -> Lowered:
        """The step for so many normalised images on each of some devices, to compile ahead."""
        shape = (images, image_size, image_size, 3)
        first = jax.eval_shape(self.first_state, 0, jax.ShapeDtypeStruct(shape, jnp.float32))
        batch = (
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct((images,), jnp.int32),
        )
        step = jax.pmap(self.train, _AXIS, devices=devices, donate_argnums=(0,))
        return step.lower(
            *jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((len(devices), *a.shape), a.dtype), (first, batch)
            )
        )

    def first_state(self, _: Any, images: Any) -> Any:
        variables = self._model.init(jax.random.key(0), images[:1])
        return variables, self._optimizer.init(variables["params"])

    def train(self, state: Any, batch: Any) -> tuple[Any, Any]:
        (variables, moved), (images, labels) = state, batch

        def loss_of(params: Any) -> tuple[Any, Any]:
            logits, changed = self._model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            wide = logits.astype(jnp.float32)
            loss = optax.softmax_cross_entropy_with_integer_labels(wide, labels).mean()
            return loss, changed

        params = variables["params"]
        (loss, changed), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        gradients, loss = jax.lax.pmean((gradients, loss), _AXIS)
        updates, moved = self._optimizer.update(gradients, moved, params)
        variables = {"params": optax.apply_updates(params, updates), **changed}
        return (variables, moved), loss


def compile_ahead(
    name: str, topology: str, images: int, image_size: int, num_classes: int
) -> dict[str, Any]:
    """What a TPU's compiler says of a step of normalised images, BatchNorm of each chip."""
    from train.ahead.figures import compile_step
    from train.ahead.topology import find_devices

    devices = find_devices(topology)
    lowered = LinenTraining(name, num_classes=num_classes, precision="bf16").lower(
        devices, images, image_size
    )
    return dataclasses.asdict(compile_step(lowered))


class LinenStep(LinenTraining):
    """Trains on one batch again and again; to call it is to wait for `steps` steps.

    Args:
        name, precision: see `LinenTraining`.
        images: (n, h, w, c), normalised. labels: (n,).
        steps: in one call.
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        num_classes: int,
        precision: str,
        steps: int,
    ):
        super().__init__(name, num_classes=num_classes, precision=precision)
        count = jax.local_device_count()
        shares = [a.reshape(count, -1, *a.shape[1:]) for a in (images, labels)]
        # under one name of the axis: arrays of another one would have the step compiled twice
        self._batch = jax.pmap(lambda batch: batch, _AXIS)(shares)
        self._state = jax.pmap(self.first_state, _AXIS)(np.zeros(count), self._batch[0])
        self._step = jax.pmap(self.train, _AXIS, donate_argnums=(0,))
        self._steps = steps

    def __call__(self) -> None:
        loss = None
        for _ in range(self._steps):
            self._state, loss = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, loss))
