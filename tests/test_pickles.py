"""Files of `torch.save`, read without torch: what it reads we read, what is hostile is refused."""

import collections
import io
import pickle
import pickletools
import struct
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convert
from convert.arrays import to_numpy
from convert.files import read_weights
from convert.formats.pickles import read_pickle
from tests.payloads import legacy, zipped

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
]


def draw(dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(4, 3, 5, 2, dtype=dtype)
    return torch.randint(0, 2, (4, 3, 5, 2)).to(dtype)


def views() -> dict[str, torch.Tensor]:
    """Tensors that are a part, a transposition or a slice of their memory."""
    whole = torch.randn(6, 8)
    flat = torch.randn(30)
    return {
        "part": torch.randn(100)[17:42],
        "transposed": torch.randn(3, 7).t(),
        "columns": whole[:, 2:5],
        "last": torch.randn(4, 4, 2, 2).contiguous(memory_format=torch.channels_last),
        "stepped": flat[3::4],
        "scalar": flat[7],
        "empty": torch.empty(0, 3)[:, :2],
        "expanded": torch.randn(1, 5).expand(3, 5),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "frozen": torch.nn.Parameter(torch.randn(2), requires_grad=False),
    }


@pytest.mark.parametrize("is_zip", [True, False])
def test_every_dtype_and_view_is_read_as_torch_reads_it(is_zip, tmp_path):
    state = {str(dtype): draw(dtype) for dtype in DTYPES} | views()
    path = tmp_path / "m.pt"
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(convert.ConversionError, match="empty: empty"):
        read_weights(path)
    del state["empty"]
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    arrays = read_weights(path).arrays
    expected = torch.load(path)
    assert list(arrays) == list(expected)
    for name, tensor in expected.items():
        array = to_numpy(tensor)
        assert arrays[name].dtype == array.dtype, name
        assert arrays[name].tobytes() == array.tobytes(), name
        assert arrays[name].shape == array.shape


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(protocol, tmp_path):
    state = collections.OrderedDict(a=torch.randn(3), b=torch.arange(4))
    path = tmp_path / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"model": state, "epoch": 7}, path, pickle_protocol=protocol)
    weights = read_weights(path)
    assert set(weights.arrays) == {"a", "b"}
    assert all(np.array_equal(weights.arrays[n], t.numpy()) for n, t in state.items())
    assert "left out: 'epoch', 7" in weights.notes


def test_only_what_is_wanted_of_a_file_is_read(tmp_path):
    """The optimizer's memory may even be missing: it is not looked at."""
    path, cut = tmp_path / "m.pt", tmp_path / "cut.pt"
    moments = torch.randn(2**20)
    torch.save({"state_dict": {"w": torch.arange(5.0)}, "optimizer": {"state": [moments]}}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(cut, "w") as out:
        for member in archive.infolist():
            if member.file_size < moments.nbytes:
                out.writestr(member, archive.read(member))
    assert np.array_equal(read_weights(cut).arrays["w"], np.arange(5.0))


def test_a_checksum_that_torch_was_told_not_to_make_is_not_asked_for(tmp_path):
    path = tmp_path / "m.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.arange(5.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert np.array_equal(read_weights(path).arrays["w"], np.arange(5.0))


def refuse(path: Path) -> str:
    """The refusal of a file, which must come soon."""
    start = time.monotonic()
    with pytest.raises(convert.ConversionError) as caught:
        read_weights(path)
    assert time.monotonic() - start < 5
    return str(caught.value)


def opcodes(*parts: bytes | str) -> bytes:
    return b"\x80\x02" + b"".join(p if isinstance(p, bytes) else p.encode() for p in parts) + b"."


HOSTILE = {
    # a key whose hash takes 2**40 steps
    "hash": opcodes("})q\x00", b"h\x00h\x00\x86q\x00" * 40, "K\x01s"),
    "objects": opcodes("]" * 3_000_000),
    "nested": opcodes(")", b"\x85" * 3_000_000),
    "memo": opcodes("N", b"\x94" * 3_000_000),
    "copies": opcodes(
        "ccollections\nOrderedDict\nq\x00](",
        b"K\x01K\x02\x86" * 5000,
        "e\x85q\x01",
        "h\x00h\x01R0" * 500_000,
    ),
    "deep memo": opcodes("N", b"r\xff\xff\xff\xff"),
    "no end": b"\x80\x02}",
    "nothing": b"",
    "no opcode": opcodes(b"\xff"),
    "empty stack": opcodes("R"),
    "only a mark": opcodes("("),
    "odd items": opcodes("}(K\x01u"),
    "state of a list": opcodes("]}b"),
    "item of a tuple": opcodes(")K\x01K\x02s"),
    "far string": opcodes(b"X\xff\xff\xff\x7fab"),
    "no tensor": opcodes("ctorch._utils\n_rebuild_tensor_v2\n)R"),
    "rebuilt of numbers": opcodes("ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR"),
    "many duplicates": opcodes("N", "2" * 3_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("pack", [zipped, legacy])
def test_hostile_pickles_are_refused_at_once(name, pack, tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(pack(HOSTILE[name]))
    assert "m.pt" in refuse(path)


def rewritten(change: Any) -> bytes:
    """A file of one tensor, its members changed by `change`."""
    file, changed = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(changed, "w") as out:
        for name in archive.namelist():
            for new_name, content in change(name, archive.read(name)):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of names that are there twice
                    out.writestr(new_name, content)
    return changed.getvalue()


def with_pickle(old: bytes, new: bytes) -> Any:
    def change(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if name.endswith("data.pkl"):
            assert old in content
            content = content.replace(old, new)
        return [(name, content)]

    return change


def with_axes(count: int) -> Any:
    """The tensor with so many axes of 2**31 - 1 values."""
    sizes, strides = (b"(" + number * count + b"t" for number in (b"J\xff\xff\xff\x7f", b"K\x00"))

    def change(name: str, content: bytes) -> list[tuple[str, bytes]]:
        content = content.replace(b"K\x02K\x03\x86", sizes).replace(STRIDES, strides)
        return [(name, content)]

    return change


STRIDES = b"K\x03K\x01\x86"
BROKEN = {
    "strides beyond": (with_pickle(STRIDES, b"K\x04K\x01\x86"), "larger than its memory"),
    "strides far beyond": (with_pickle(STRIDES, b"J\xff\xff\xff\x7fK\x01\x86"), "larger than"),
    "negative strides": (with_pickle(STRIDES, b"J\xff\xff\xff\xffK\x01\x86"), "a size that is"),
    "many axes": (with_axes(300_000), "300000 axes"),
    "endless numbers": (
        with_pickle(b"K\x02K\x03\x86", b"\x8a\xff" + b"\x7f" * 255 + b"K\x03\x86"),
        "a size that is",
    ),
    "more than is there": (with_pickle(b"K\x06", b"K\x07"), "larger than its memory"),
    "another kind": (with_pickle(b"FloatStorage", b"DoubleStorage"), "larger than its memory"),
    "no memory": (
        lambda name, content: [] if "/data/" in name else [(name, content)],
        "the memory of a tensor is not there",
    ),
    "two pickles": (
        lambda name, content: [(name, content), (name.replace("/", "2/", 1), content)],
        "2 members data.pkl",
    ),
    "twice": (lambda name, content: [(name, content)] * 2, "a member twice"),
    "highest byte first": (
        lambda name, content: [(name, b"big" if name.endswith("byteorder") else content)],
        "lowest byte",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tensor_is_never_read_from_where_it_is_not(name, tmp_path):
    change, reason = BROKEN[name]
    path = tmp_path / "m.pt"
    path.write_bytes(rewritten(change))
    assert reason in refuse(path)


def test_views_that_share_their_memory_take_it_at_most_twice(tmp_path):
    """A small file may say of itself that it is large."""
    path, memory = tmp_path / "m.pt", torch.randn(2**16)
    torch.save({str(n): memory[:: 2**15] for n in range(1000)}, path)
    assert "overlap" in refuse(path)
    torch.save({"a": memory[::2], "b": memory[1::2]}, path)
    arrays = read_weights(path).arrays
    assert np.array_equal(arrays["b"], memory[1::2].numpy())


def test_parts_of_one_memory_are_what_torch_wrote_before_1_6(tmp_path):
    """A storage in a file of that time may be a part of another one."""
    path, memory = tmp_path / "m.pt", torch.randn(12)
    torch.save({"w": memory}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    end = content.index(b"K\x0cNt") + len(b"K\x0c")
    names = [o for o in pickletools.genops(content[content.index(b"\x80\x02}q\x00X") :]) if o[1]]
    assert any(argument == "storage" for _, argument, _ in names)
    part = b"X\x01\x00\x00\x00vK\x04K\x05\x87"  # named v: five values from the fourth on
    changed = content[:end] + part + content[end + 1 :]
    changed = changed.replace(b"K\x00K\x0c\x85", b"K\x00K\x05\x85")  # and so is the tensor
    path.write_bytes(changed)
    expected = torch.load(path, weights_only=True)["w"]
    assert torch.equal(expected, memory[4:9])
    assert np.array_equal(read_weights(path).arrays["w"], memory[4:9].numpy())


def test_a_pickle_is_followed_as_pickle_follows_it():
    """Values of the kinds that training scripts keep, in every protocol, text included."""
    value = {
        "epoch": 3, "loss": 0.25, "name": "ResNet50 \N{DEGREE SIGN}", "best": None, "done": True,
        "steps": [1, 300, 70_000, -5, 2**40], "shape": (2, 3), "nested": {"a": {"b": [()]}}, 7: 8,
    }  # fmt: skip
    for protocol in range(1, 6):
        content = pickle.dumps(value, protocol) + b"more"
        read, end = read_pickle(content, unsafe := set())
        assert read == value, protocol
        assert content[end:] == b"more"
        assert not unsafe
    assert read_pickle(b"I5\n.", set())[0] == 5
    with pytest.raises(ValueError, match="damaged"):
        read_pickle(struct.pack("<BI", ord("X"), 9), set())
