"""Flax models that are built to be filled: nothing drawn, nothing shared, nothing left out."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_resnet
from convert.errors import ConversionError
from convert.models import arrays_of, build_flax
from flax_resnet.layers import no_values
from resnet_spec import ClassifierSpec, ResNetSpec


def small(**changes: object) -> ClassifierSpec:
    fields = {"block": "basic", "stage_depths": (4, 1), "stage_planes": (2, 4), "stem_planes": 2}
    return ClassifierSpec(ResNetSpec(**{**fields, "small_images": True, **changes}), 3)  # type: ignore[arg-type]


def arrays_for(classifier: ClassifierSpec) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.random(shape).astype(np.float32) if shape else np.array(rng.integers(99))
        for name, shape in classifier.tensors().items()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"drop_rate": 0.3},
        {"preact": True},
        {"zero_init_residual": True},
        {"block": "bottleneck"},
    ],
    ids=str,
)
def test_a_built_model_is_one_that_was_made_the_usual_way_and_filled(changes):
    classifier = small(**changes)
    arrays = arrays_for(classifier)
    model = build_flax(classifier, arrays)
    assert arrays_of(model).keys() == arrays.keys()
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    with no_values():
        usual = flax_resnet.from_spec(classifier.network, rngs=nnx.Rngs(0))
    usual.set_head(nnx.Linear(usual.out_planes, 3, rngs=nnx.Rngs(0)))
    usual.eval()
    kinds = [
        [(path, type(module)) for path, module in nnx.iter_modules(one)] for one in (model, usual)
    ]
    assert kinds[0] == kinds[1]
    assert model.spec == usual.spec
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))


def test_equal_blocks_share_no_variable_and_no_random_stream():
    model = build_flax(small(drop_rate=0.5), arrays_for(small(drop_rate=0.5)))
    variables = [id(variable) for _, variable in nnx.to_flat_state(nnx.state(model))]
    assert len(set(variables)) == len(variables)
    blocks = list(model.stages[0])
    keys = {tuple(jax.random.key_data(b.dropout.rngs.key.get_value()).tolist()) for b in blocks}
    assert len(keys) == len(blocks)
    first, second = (
        block.conv1.kernel for block in build_flax(small(), arrays_for(small())).stages[0][2:4]
    )
    before = np.asarray(second.get_value())
    first.set_value(first.get_value() + 1)
    np.testing.assert_array_equal(second.get_value(), before)


@pytest.mark.parametrize("changes", [{}, {"drop_rate": 0.5}], ids=str)
def test_two_models_of_one_description_share_nothing(changes):
    classifier = small(**changes)
    one, other = (build_flax(classifier, arrays_for(classifier)) for _ in range(2))
    shared = {id(node) for _, node in nnx.iter_graph(one)} & {
        id(node)
        for _, node in nnx.iter_graph(other)
        if isinstance(node, nnx.Variable | nnx.Module | jax.Array)
    }
    assert not shared
    before = {name: array.copy() for name, array in arrays_of(other).items()}
    one.set_head(nnx.Linear(one.out_planes, 7, rngs=nnx.Rngs(0)))
    one.train()
    one(jnp.ones((2, 8, 8, 3)))
    assert isinstance(other.head, nnx.Linear)
    assert other.head.out_features == 3
    assert other.stem.bn.use_running_average is not False
    for name, array in arrays_of(other).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_model_is_free_with_its_last_name():
    """Python's garbage collection, which may come late, is not needed."""
    classifier = small()
    gc.collect()
    gc.disable()
    try:
        build_flax(classifier, arrays_for(classifier))
        before = len(jax.live_arrays())
        model = build_flax(classifier, arrays_for(classifier))
        assert len(jax.live_arrays()) == before + len(classifier.tensors())
        del model
        assert len(jax.live_arrays()) == before
    finally:
        gc.enable()


def test_garbage_collection_goes_on_after_a_model_is_built_or_refused():
    build_flax(small(), arrays_for(small()))
    assert gc.isenabled()
    with pytest.raises(ConversionError):
        build_flax(small(), {})
    assert gc.isenabled()
    gc.disable()
    try:
        build_flax(small(), arrays_for(small()))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_callers_arrays_may_change_afterwards():
    arrays = arrays_for(small())
    copies = {name: array.copy() for name, array in arrays.items()}
    model = build_flax(small(), arrays)
    for array in arrays.values():
        array.fill(5)
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, copies[name], err_msg=name)


def test_layers_draw_again_after_a_model_was_built_without():
    with no_values():
        assert isinstance(flax_resnet.BatchNorm(3).scale.get_value(), jax.ShapeDtypeStruct)
    assert isinstance(flax_resnet.BatchNorm(3).scale.get_value(), jax.Array)
