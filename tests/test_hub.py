"""Weights by their address on the hub, which the test itself serves on the loopback address."""

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from huggingface_hub import constants, hf_api
from safetensors.numpy import save_file

import convert
import torch_resnet
from convert import folders
from convert.__main__ import main
from convert.layouts import find_layout, write_layout
from convert.models import arrays_of, describe
from convert.weights import Weights
from resnet_spec import PREPROCESSINGS
from tests.commands import run_here
from tests.twins import random_images, randomise, run_torch
from torch_resnet.network import ResidualNetwork

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Folders `OWNER/NAME` of a folder, as the hub's own server gives them."""

    def __init__(self, root: Path):
        self.root, self.fetched = root, list[str]()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, self.command == "GET")

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler, has_body: bool) -> None:
        parts = unquote(request.path.partition("?")[0]).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            folder = self.root / parts[2] / parts[3]
            paths = sorted(p for p in folder.rglob("*") if p.is_file())
            names = [{"rfilename": str(p.relative_to(folder))} for p in paths]
            entries = {"id": f"{parts[2]}/{parts[3]}", "sha": COMMIT, "siblings": names}
            is_there, body = folder.is_dir(), json.dumps(entries).encode()
        else:
            owner, name, *rest = parts
            _, revision, *file = rest or ("", "")
            path = self.root / owner / name / "/".join(file)
            is_there = path.is_file() and revision in ("main", COMMIT)
            body = path.read_bytes() if is_there else b""
            if is_there and has_body:
                self.fetched.append("/".join(file))
        request.send_response(200 if is_there else 404)
        if not is_there:
            kind = "EntryNotFound" if parts[0] != "api" else "RepoNotFound"
            request.send_header("X-Error-Code", kind)
            body = b""
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{abs(hash(request.path.rpartition("/")[2])):040x}"')
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if has_body:
            request.wfile.write(body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    served = Hub(tmp_path / "served")
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hf_api.api, "endpoint", served.endpoint)
    yield served
    served.close()


def cifar_network(in_planes: int) -> ResidualNetwork:
    model = torch_resnet.create("ResNet20", 10, in_planes=in_planes, shortcut="centred_identity")
    randomise(model)
    return model.eval()


def serve_cifar(hub: Hub, name: str, num_files: int = 1, in_planes: int = 3) -> ResidualNetwork:
    """A ResNet20 under another package's names, in one file or with an index in several."""
    model, folder = cifar_network(in_planes), hub.root / "someone" / name
    folder.mkdir(parents=True)
    arrays = write_layout(arrays_of(model), describe(model), find_layout("cifar"))
    if num_files == 1:
        save_file(arrays, folder / "model.safetensors")
        (folder / "config.json").write_text('{"num_classes": 10}')  # of no package
        return model
    places = {n: f"model-{i % num_files + 1:05}-of-00002.safetensors" for i, n in enumerate(arrays)}
    for file in set(places.values()):
        save_file({n: a for n, a in arrays.items() if places[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def serve_timm(hub: Hub, name: str) -> ResidualNetwork:
    model = torch_resnet.create("ResNet18", 3)
    randomise(model)
    (hub.root / "timm").mkdir(parents=True)
    preprocessing = dataclasses.replace(PREPROCESSINGS["imagenet"], class_names=None)
    weights = Weights(arrays_of(model), describe(model), preprocessing)
    folders.write_folder(hub.root / "timm" / name, weights, find_layout("timm"))
    return model.eval()


def test_weights_load_by_their_address_and_the_cache_is_honoured(hub, monkeypatch, capsys):
    expected = serve_cifar(hub, "resnet20")
    images = random_images(2, 16, "float32")
    for _ in range(2):
        with pytest.warns(UserWarning, match="tensors do not show") as warned:
            model = convert.load("hf://someone/resnet20", "torch")
        (warning,) = warned  # one, of all notes, at the caller's line
        assert warning.filename == __file__
        text = str(warning.message)
        for part in (f"resnet20, model.safetensors, at commit {COMMIT}:", "taken with --layout"):
            assert part in text
        np.testing.assert_array_equal(run_torch(model, images), run_torch(expected, images))
    assert hub.fetched.count("model.safetensors") == 1
    hub.close()
    assert main(["inspect", "hf://someone/resnet20"]) == 0
    printed = capsys.readouterr().out
    assert "from the cache alone: the hub could not be reached" in printed
    assert COMMIT in printed
    with pytest.raises(
        convert.ConversionError, match=r"cannot be reached .* the cache, .*cache, does"
    ):
        convert.load("hf://someone/other", "torch")


def test_a_model_folder_of_the_hub_is_imported_with_its_preprocessing(hub, tmp_path, capsys):
    expected, output = serve_timm(hub, "resnet18.tiny"), tmp_path / "m.safetensors"
    assert main(["import", "hf://timm/resnet18.tiny@main", "-o", str(output)]) == 0
    assert f"hf://timm/resnet18.tiny@main, model.safetensors, at commit {COMMIT}" in (
        capsys.readouterr().out
    )
    preprocessing = convert.load_preprocessing(output)
    assert preprocessing is not None
    assert preprocessing.mean == PREPROCESSINGS["imagenet"].mean
    images = random_images(2, 64, "float32")
    for source in (output, "hf://timm/resnet18.tiny"):
        model = convert.load(source, "torch")
        np.testing.assert_array_equal(run_torch(model, images), run_torch(expected, images))


def test_weights_in_several_files_come_in_by_their_index(hub, tmp_path, capsys):
    expected = serve_cifar(hub, "sharded", num_files=2)
    images = random_images(2, 16, "float32")
    with pytest.warns(UserWarning, match="from 2 files, as model.safetensors.index.json"):
        model = convert.load("hf://someone/sharded", "torch")
    np.testing.assert_array_equal(run_torch(model, images), run_torch(expected, images))

    folder, output = hub.root / "someone" / "sharded", tmp_path / "m.safetensors"
    index = folder / "model.safetensors.index.json"
    assert main(["import", str(index), "-o", str(output)]) == 0
    assert "from 2 files, as model.safetensors.index.json names them" in capsys.readouterr().out
    model = convert.load(output, "torch")
    np.testing.assert_array_equal(run_torch(model, images), run_torch(expected, images))

    places = json.loads(index.read_text())["weight_map"]
    for wrong, reason in (
        ({**places, "linear.bias": "../m.safetensors"}, "names files outside its folder"),
        ({**places, "linear.bias": "absent.safetensors"}, "names files that are not beside it"),
        ({**places, "more.bias": places["linear.bias"]}, "missing: more.bias in model-0"),
        ({n: p for n, p in places.items() if n != "linear.bias"}, "left over: linear.bias in"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert main(["import", str(index), "-o", str(output)]) == 2
        assert reason in capsys.readouterr().err


def test_of_several_files_in_a_folder_the_one_in_the_address_is_read(hub, tmp_path):
    """Also where the cache has the other one already."""
    first = serve_timm(hub, "resnet18.tiny")
    second = torch_resnet.create("ResNet18", 3).eval()
    randomise(second, seed=1)
    state = convert.to_layout(second.state_dict(), "ResNet18", "timm")
    torch.save(dict(state), hub.root / "timm" / "resnet18.tiny" / "pytorch_model.bin")
    images = random_images(2, 64, "float32")
    for file, expected in (("model.safetensors", first), ("pytorch_model.bin", second)):
        output = tmp_path / "m.pt"
        address = f"hf://timm/resnet18.tiny/{file}"
        assert main(["import", address, "-o", str(output)]) == 0
        assert convert.load_preprocessing(output) is not None
        model = convert.load(output, "torch")
        np.testing.assert_array_equal(run_torch(model, images), run_torch(expected, images))


def test_what_the_hub_does_not_have_is_refused_in_one_sentence(hub, tmp_path, capsys):
    folder = hub.root / "someone" / "many"
    folder.mkdir(parents=True)
    for name in ("a.pt", "b.safetensors"):
        (folder / name).write_bytes(b"weights")
    (hub.root / "someone" / "none").mkdir()
    (hub.root / "someone" / "none" / "README.md").write_text("words")
    for address, reason in (
        ("hf://someone/absent", "hf://someone/absent cannot be fetched: the hub has none such"),
        ("hf://someone/many", "2 files that may be weights: name one of them"),
        ("hf://someone/many/c.pt", "hf://someone/many/c.pt cannot be fetched: it has no such file"),
        ("hf://someone/none", "has no file that holds weights; it has:"),
        ("hf://someone", "is no address on the hub: hf://OWNER/NAME"),
    ):
        assert main(["import", address, "-o", str(tmp_path / "m.safetensors")]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()


def test_a_run_starts_from_weights_of_the_hub(hub, tmp_path):
    serve_cifar(hub, "resnet20", in_planes=1)
    command = ("finetune", "--model", "ResNet20", "--shortcut", "centred_identity")
    options = ("--init-from", "hf://someone/resnet20", "--data", "digits")
    done = run_here(
        "train", *command, *options, "--max-steps", "1", "--run-dir", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "starting from hf://someone/resnet20 (" in done.stdout
    assert "hf://someone/resnet20, model.safetensors, at commit" in done.stdout
