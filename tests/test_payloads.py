"""Files that would run code: none is run, each is refused, and each is known to be alive."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import convert
from convert.files import read_weights
from tests.commands import assert_refused, run_here
from tests.payloads import (
    PAYLOADS,
    bare,
    header_npz,
    legacy,
    npy_with_header,
    object_npz,
    zipped,
)

CONTAINERS = {"zip.pt": zipped, "legacy.pth": legacy, "bare.th": bare}


def refusal(path: Path) -> str:
    """What a reader says of a file: our error and no other, from every entry."""
    with pytest.raises(convert.ConversionError):
        convert.load(path, backend="torch")
    with pytest.raises(convert.ConversionError) as caught:
        read_weights(path)
    return str(caught.value)


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_payload_is_refused_and_not_run(tmp_path, name, container):
    canary, path = tmp_path / "canary", tmp_path / container
    path.write_bytes(CONTAINERS[container](PAYLOADS[name](canary)))
    message = refusal(path)
    assert "asks for" in message
    assert "weights_only=False" in message  # how to re-save it, where it is trusted
    assert not canary.exists()


def test_every_payload_is_alive(tmp_path):
    """All of them are RUN here, in a process, by the unguarded loads of pickle, torch and NumPy."""
    canaries = []

    def canary() -> Path:
        canaries.append(tmp_path / f"canary {len(canaries)}")
        return canaries[-1]

    loaders = {"pickle": bare, "torch-zip": zipped, "torch-legacy": legacy}
    files = {
        f"{loader}-{number}": pack(make(canary()))
        for number, make in enumerate(PAYLOADS.values())
        for loader, pack in loaders.items()
    }
    files["numpy"] = object_npz(canary())
    files["header"] = header_npz(canary())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code = (
        "import contextlib, pathlib, pickle, sys, zipfile; import numpy, torch\n"
        "def header(path):\n"
        "    eval(zipfile.ZipFile(path).read('w.npy')[10:-4])\n"
        "run = {\n"
        "    'pickle': lambda path: pickle.loads(path.read_bytes()),\n"
        "    'torch': lambda path: torch.load(path, weights_only=False),\n"
        "    'numpy': lambda path: numpy.load(path, allow_pickle=True)['w'],\n"
        "    'header': header,\n"
        "}\n"
        "for path in map(pathlib.Path, sys.argv[1:]):\n"
        "    with contextlib.suppress(Exception):\n"  # some fail after they did their work
        "        run[path.name.partition('-')[0]](path)\n"
    )
    subprocess.run([sys.executable, "-c", code, *files], cwd=tmp_path, check=True)
    until = time.monotonic() + 20  # Popen does not wait for its process
    while not all(c.exists() for c in canaries) and time.monotonic() < until:
        time.sleep(0.05)
    assert [c.name for c in canaries if not c.exists()] == []
    assert len(canaries) == len(PAYLOADS) * len(loaders) + 2


def test_a_refusal_lists_what_the_file_asks_for(tmp_path):
    import fractions

    path = tmp_path / "run.pth"
    content = {"args": fractions.Fraction(1, 3), "state_dict": {"w": torch.ones(3)}}
    torch.save(content, path)
    message = refusal(path)
    assert "fractions.Fraction" in message
    lines = [line.strip() for line in message.splitlines()]
    script = "\n".join(
        line for line in lines if line.startswith(("content", "state", "torch.save("))
    )
    code = f"import torch\n{script}"  # the advice works, word for word
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    weights = read_weights(tmp_path / "weights.pt")
    np.testing.assert_array_equal(weights.arrays["w"], np.ones(3))


@pytest.mark.parametrize("make", [object_npz, header_npz])
def test_a_payload_in_an_npz_is_refused_and_not_run(tmp_path, make):
    canary, path = tmp_path / "canary", tmp_path / "m.npz"
    path.write_bytes(make(canary))
    assert "not a whole npz" in refusal(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "cos\nsystem\n(S'touch canary'\ntR.",
        "__import__('os').system('touch canary')",
        "[" * 100_000,
        json.dumps({"version": 1, "model": {"network": {"stage_depths": [9] * 10**5}}}),
        '"' + "a" * 3_000_000 + '"',
        "9" * 1_000_000,
    ],
)
def test_a_description_that_is_code_or_a_bomb_is_refused_at_once(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    encoded = json.dumps({"__metadata__": {"flax_resnet": text}, **header}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(4))
    start = time.monotonic()
    assert "describes its model wrongly" in refusal(path)
    assert time.monotonic() - start < 5
    assert not (tmp_path / "canary").exists()


def test_the_command_refuses_payloads_too(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "m.pt").write_bytes(zipped(PAYLOADS["os.system"](canary)))
    (tmp_path / "m.npz").write_bytes(object_npz(canary))
    for name, part in (("m.pt", "posix.system"), ("m.npz", "m.npz")):
        arguments = ("import", name, "--model", "ResNet20", "-o", "out.pt")
        assert_refused(run_here("convert", *arguments, cwd=tmp_path), part)
        assert not canary.exists()
        assert not (tmp_path / "out.pt").exists()


def test_a_header_of_python_2_is_no_code(tmp_path):
    """What it may hold, numbers with an L, is refused as well, with a sentence."""
    path = tmp_path / "m.npz"
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }"
    path.write_bytes(npy_with_header(header, bytes(4)))
    assert "not a whole npz" in refusal(path)
