"""What each form of file may hold, and what is refused in it, everything at once."""

import collections
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import convert
from convert.arrays import same_bits, to_numpy
from convert.files import SUFFIXES, Weights, read_weights, write_weights
from convert.formats import FORMS
from tests.twins import make_twins

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]


def random_arrays(*dtypes: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {f"a.{d}": rng.integers(0, 200, (3, 4)).astype(np.dtype(d)) for d in dtypes}
    return {**values, "scalar": np.array(7), "transposed": rng.standard_normal((5, 2)).T}


def assert_same(one: Mapping, other: Mapping) -> None:
    assert dict(one).keys() == dict(other).keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_form_keeps_every_dtype_shape_and_order(tmp_path, suffix):
    path, arrays = tmp_path / f"m{suffix}", random_arrays(*DTYPES)
    write_weights(path, Weights(arrays, None))
    weights = read_weights(path)
    assert_same(weights.arrays, arrays)
    assert weights.classifier is None
    assert weights.notes == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["../../e", "/etc/x", "a/b", "C:\\x", "ü ", "file", "__x__"])
def test_a_name_is_never_a_path(tmp_path, suffix, name):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    path, arrays = folder / f"m{suffix}", {name: np.ones(3)}
    write_weights(path, Weights(arrays, None))
    assert_same(read_weights(path).arrays, arrays)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_finite_is_refused_by_name_unless_it_is_allowed(tmp_path, suffix):
    arrays = random_arrays("float32", "bfloat16")
    arrays["a.float32"][0, :2] = np.nan, np.inf
    arrays["a.bfloat16"][1, 1] = -np.inf
    path, weights = tmp_path / f"m{suffix}", Weights(arrays, None)
    expected = [
        "non-finite: a.float32 has 1 NaN and 1 infinite of 12 values",
        "non-finite: a.bfloat16 has 0 NaN and 1 infinite of 12 values",
    ]
    with pytest.raises(convert.ConversionError) as caught:
        write_weights(path, weights)
    assert caught.value.problems == expected
    assert not path.exists()
    write_weights(path, weights, allow_nonfinite=True)
    with pytest.raises(convert.ConversionError) as caught:
        read_weights(path)
    assert sorted(caught.value.problems) == sorted(expected)
    assert_same(read_weights(path, allow_nonfinite=True).arrays, arrays)


def test_a_model_that_is_not_finite_is_neither_saved_nor_loaded_by_accident(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    path = tmp_path / "m.safetensors"
    with torch.no_grad():
        model.stem.conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(convert.ConversionError, match=r"stem\.conv\.weight has 1 NaN"):
        convert.save(path, model)
    convert.save(path, model, allow_nonfinite=True)
    with pytest.raises(convert.ConversionError, match=r"stem\.conv\.weight has 1 NaN"):
        convert.load(path, backend="torch")
    assert convert.load(path, backend="torch", allow_nonfinite=True).spec == model.spec


TORCH_DTYPES = [*DTYPES, "int16", "int8", "complex64", "complex128"]


@pytest.mark.parametrize("is_mapped", [False, True])
def test_torch_reads_the_files_that_are_written_for_it(is_mapped, tmp_path):
    """Whatever the arrays' strides are; the archive's own checksums hold, too."""
    rng = np.random.default_rng(0)
    arrays = {d: rng.integers(0, 2, (3, 70, 5, 2)).astype(d) for d in TORCH_DTYPES}
    arrays = {name: array.transpose(1, 3, 0, 2) for name, array in arrays.items()}
    arrays |= {"../name ü": rng.standard_normal((300, 1, 700)), "scalar": np.array(2**40)}
    arrays["columns"] = rng.standard_normal((64, 64))[:, 3:40]
    path = tmp_path / "m.pt"
    write_weights(path, Weights(arrays, None))
    state = torch.load(path, weights_only=True, mmap=is_mapped)
    assert type(state) is collections.OrderedDict
    assert list(state) == list(arrays)
    for name, tensor in state.items():
        assert tensor.is_contiguous(), name
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == arrays[name].nbytes, name
        assert same_bits(to_numpy(tensor), arrays[name]), name
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_memory_of_large_members_is_aligned_for_who_maps_the_file(tmp_path, monkeypatch):
    """Beyond 2 GiB a member's header is longer; here beyond a thousand bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    arrays = {str(size): np.arange(size, dtype=np.float64) for size in (3, 400, 17, 900)}
    write_weights(tmp_path / "m.pt", Weights(arrays, None))
    state = torch.load(tmp_path / "m.pt", mmap=True)
    for name, tensor in state.items():
        assert tensor.data_ptr() % 64 == 0, name
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


def test_torch_reads_more_shapes_than_a_pickle_can_number_in_a_byte(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{i}": rng.standard_normal((1 + i % 400, 1 + i % 3)) for i in range(900)}
    path = tmp_path / "m.pt"
    write_weights(path, Weights(arrays, None))
    state = torch.load(path, weights_only=True)
    assert list(state) == list(arrays)
    assert all(same_bits(to_numpy(state[name]), array) for name, array in arrays.items())


def test_a_dtype_that_torch_has_no_name_for_is_refused(tmp_path):
    weights = Weights({"a": np.ones(3, np.uint16)}, None)
    with pytest.raises(convert.ConversionError, match="no name for uint16"):
        write_weights(tmp_path / "m.pt", weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fault", ["bit", "name"])
def test_what_reads_back_otherwise_than_written_is_no_file(fault, suffix, tmp_path, monkeypatch):
    """One bit of a tensor of 60 kB, or two tensors of one shape under each other's names."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((60, 1, 32, 4)).T for name in ("first", "other")}
    path, form = tmp_path / f"m{suffix}", FORMS[suffix]
    path.write_bytes(b"old")
    write = form.write

    def write_wrongly(path: Path, arrays: Mapping, metadata: Mapping) -> dict[str, int]:
        if fault == "name":
            swapped = {"first": arrays["other"], "other": arrays["first"]}
            sums = write(path, swapped, metadata)
            return {"first": sums["other"], "other": sums["first"]}
        sums = write(path, arrays, metadata)
        content = bytearray(path.read_bytes())
        content[content.index(arrays["first"].tobytes()) + 30_000] ^= 4
        path.write_bytes(content)
        return sums

    monkeypatch.setattr(form, "write", write_wrongly)
    with pytest.raises((convert.ConversionError, OSError), match=r"otherwise|whole"):
        write_weights(path, Weights(arrays, None))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_all_that_is_wrong_with_a_safetensors_file_is_said_at_once(tmp_path):
    entry = '"{}":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}}'
    parts = [("twice", 1, 0, 4), ("twice", 1, 0, 4), ("nan", 1, 4, 8), ("empty", 0, 8, 8)]
    header = ("{" + ",".join(entry.format(*part) for part in parts) + "}").encode()
    data = np.array([1, np.nan], np.float32).tobytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    with pytest.raises(convert.ConversionError) as caught:
        read_weights(path)
    assert sorted(caught.value.problems) == [
        "duplicate: the header has twice more than once",
        "empty: empty (0,) has no value",
        "non-finite: nan has 1 NaN and 0 infinite of 1 values",
    ]


@pytest.mark.parametrize(
    "begins_as",
    [
        *(bytes([0x80, protocol]) for protocol in (2, 3, 4, 5)),  # a pickle
        b"\x81\xa1a",  # Flax's msgpack
        b"\x1f\x8b",  # gzip
    ],
    ids=bytes.hex,
)
def test_a_safetensors_header_may_have_any_length(begins_as, tmp_path):
    """Other forms begin with these bytes, here the low ones of the length of a padded header."""
    arrays, path = random_arrays("float32"), tmp_path / "m.safetensors"
    write_weights(path, Weights(arrays, None))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    padded = int.from_bytes(begins_as, "little") + 2**16 * (len(begins_as) == 2)
    header = content[8 : 8 + length].ljust(padded)
    path.write_bytes(struct.pack("<Q", padded) + header + content[8 + length :])
    assert_same(read_weights(path).arrays, arrays)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's own, as it writes them
def test_all_that_is_wrong_with_an_npz_is_said_at_once(tmp_path):
    def packed(array: np.ndarray) -> bytes:
        content = io.BytesIO()
        np.save(content, array)
        return content.getvalue()

    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("twice.npy", "twice.npy"):
            archive.writestr(name, packed(np.ones(3)))
        archive.writestr("empty.npy", packed(np.ones((0, 3))))
        archive.writestr("run.sh", b"touch canary")
    with pytest.raises(convert.ConversionError) as caught:
        read_weights(path)
    assert caught.value.problems == [
        "duplicate: the archive has twice more than once",
        "left over: run.sh is no array, whose name ends in .npy",
        "empty: empty (0, 3) has no value",
    ]


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_a_file_without_arrays_is_refused(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    torch.save({}, path) if suffix == ".pt" else np.savez(path)
    with pytest.raises(convert.ConversionError, match=r"no array|state dict"):
        read_weights(path)


def test_numpys_own_files_are_read(tmp_path):
    """Compressed, in Fortran's order, of the other byte order, bfloat16 without its name."""
    arrays: dict[str, Any] = {
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big": np.arange(3, dtype=">f4"),
        "half": np.arange(3).astype(ml_dtypes.bfloat16),
        "arch": np.array("resnet20"),
    }
    path = tmp_path / "m.npz"
    np.savez_compressed(path, **arrays)
    weights = read_weights(path)
    assert weights.arrays["big"].dtype == np.float32
    assert weights.notes == (
        "half has two bytes a value and no dtype: taken as bfloat16",
        "left out: arch, which is text",
    )
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_numpy_reads_our_npz(tmp_path):
    _, model = make_twins("ResNet20", dtype="float32")
    convert.save(tmp_path / "m.npz", model)
    with np.load(tmp_path / "m.npz") as content:
        text = json.loads(json.loads(content["__metadata__"].item())["flax_resnet"])
        assert text["model"]["num_classes"] == 10
        assert set(content) == {"__metadata__", *model.state_dict()}
        np.testing.assert_array_equal(content["head.bias"], model.head.bias.detach().numpy())


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "m.npz"
    np.savez_compressed(path, zeros=np.zeros(2**24))  # 134 MB in 0.1 MB
    with pytest.raises(convert.ConversionError, match="would unpack to 134"):
        read_weights(path)
    lying = tmp_path / "lying.npz"  # a header that says more than the member holds
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    with zipfile.ZipFile(lying, "w") as archive:
        length = len(header).to_bytes(2, "little")
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + length + header + bytes(8))
    with pytest.raises(convert.ConversionError, match=r"holds 8 bytes"):
        read_weights(lying)


WRAPPED = {  # what is written, and what the notes say of it
    "state_dict": (
        lambda s: {"epoch": 3, "state_dict": s, "best_prec1": torch.tensor(91.7)},
        ("the entry 'state_dict'", "'epoch', 3", "'best_prec1', of type Tensor"),
    ),
    "model": (
        lambda s: {"model": s, "optimizer": {"state": {0: {"step": 1}}}, "none": None},
        ("the entry 'model'", "'optimizer', a mapping of 1 entries ('state')", "NoneType"),
    ),
    "DataParallel": (lambda s: {f"module.{n}": t for n, t in s.items()}, ("began with 'module.'",)),
    "compiled": (
        lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
        ("began with 'module.'", "began with '_orig_mod.'"),
    ),
    "parameters": (lambda s: {n: torch.nn.Parameter(t) for n, t in s.items()}, ()),
    "schedule": (
        lambda s: {"state_dict": s, "milestones": collections.Counter([30, 60])},
        ("'milestones', a mapping of 2 entries (30, 60)",),
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_state_dict_is_found_in_what_people_wrap_it_in(tmp_path, kind, is_zip):
    state = collections.OrderedDict(w=torch.rand(2, 3), b=torch.rand(2))
    path = tmp_path / "m.th"
    wrap, expected = WRAPPED[kind]
    torch.save(wrap(state), path, _use_new_zipfile_serialization=is_zip)
    weights = read_weights(path)
    assert_same(weights.arrays, {name: tensor.numpy() for name, tensor in state.items()})
    for part in expected:
        assert part in " ".join(weights.notes)
    assert bool(expected) == bool(weights.notes)


def test_several_state_dicts_are_an_error_that_names_them(tmp_path):
    state = {"w": torch.rand(2)}
    path = tmp_path / "m.pt"
    torch.save({"state_dict": state, "state_dict_ema": state, "epoch": 1}, path)
    with pytest.raises(convert.ConversionError, match="2 state dicts") as caught:
        read_weights(path)
    assert caught.value.problems[1] == "--entry state_dict_ema  (1 tensors)"


@pytest.mark.parametrize("content", [[1], {"a": 1}, {1: torch.ones(2)}, torch.ones(2), "text"])
def test_what_is_no_state_dict_is_said(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(convert.ConversionError, match=r"does not hold a state dict.*it is"):
        read_weights(tmp_path / "m.pt")


def test_tensors_that_say_to_be_larger_than_the_file_are_refused(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, path)
    with pytest.raises(convert.ConversionError, match="larger than the file"):
        read_weights(path)
