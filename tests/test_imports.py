"""Who may import whom: each package in a fresh interpreter, and no circles between files."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import assert_refused

TORCH, JAX = ("torch",), ("jax", "jaxlib", "flax", "optax", "orbax")
ALLOWED = {
    "resnet_spec": {"forbidden": (*TORCH, *JAX, "numpy", "jaxtyping"), "ours": {"resnet_spec"}},
    "torch_resnet": {"forbidden": JAX, "ours": {"resnet_spec", "torch_resnet"}},
    "flax_resnet": {"forbidden": TORCH, "ours": {"resnet_spec", "flax_resnet"}},
    "convert": {"forbidden": (*TORCH, *JAX), "ours": {"resnet_spec", "convert"}},
    "convert.__main__": {"forbidden": (*TORCH, *JAX), "ours": {"resnet_spec", "convert"}},
    "train.run.loop": {
        "forbidden": TORCH,
        "ours": {"resnet_spec", "flax_resnet", "train", "convert"},
    },
    "train.data.load": {
        "forbidden": (*TORCH, "tensorflow"),
        "ours": {"resnet_spec", "train"},
    },
    "train.data.stream": {
        "forbidden": (*TORCH, "tensorflow"),
        "ours": {"resnet_spec", "train"},
    },
    "convert.atomic": {"forbidden": (*TORCH, *JAX), "ours": {"resnet_spec", "convert"}},
    "train.step.train_step": {"forbidden": TORCH, "ours": {"resnet_spec", "flax_resnet", "train"}},
    "train.results.results_command": {
        "forbidden": (*TORCH, *JAX),
        "ours": {"resnet_spec", "train", "convert"},
    },
    "train.results.table_command": {
        "forbidden": (*TORCH, *JAX),
        "ours": {"resnet_spec", "train", "convert"},
    },
    "train.__main__": {"forbidden": (*TORCH, *JAX), "ours": {"resnet_spec", "train"}},
}
OURS = ("resnet_spec", "flax_resnet", "torch_resnet", "convert", "train")


@pytest.mark.parametrize(
    "package",
    [pytest.param(p, marks=pytest.mark.torch) if p == "torch_resnet" else p for p in ALLOWED],
)
def test_a_package_imports_only_what_it_may(package):
    """What is forbidden is made impossible to import, as where it is not installed."""
    forbidden = ALLOWED[package]["forbidden"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({forbidden!r}))\n"
        f"import {package}\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert {name for name in run.stdout.split() if name in OURS} == ALLOWED[package]["ours"]


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("packages", [*((package,) for package in OURS), OURS], ids="-".join)
def test_no_files_import_each_other_in_a_circle(packages):
    """An import inside a function counts, one for the type checker alone does not."""
    files = {name: path for package in packages for name, path in find_modules(package)}
    graph = {name: sorted(find_imports(name, path, files)) for name, path in files.items()}
    circle = find_circle(graph)
    assert not circle, " -> ".join(str(files[name].relative_to(ROOT)) for name in circle)


def find_modules(package: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of every module; a package is the file `__init__.py`."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def find_imports(module: str, path: Path, files: dict[str, Path]) -> set[str]:
    """Modules among `files` that a file imports; of a name in a package the submodule, if any."""
    found = set[str]()
    trees: list[ast.AST] = [ast.parse(path.read_text())]
    while trees:
        match tree := trees.pop():
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                trees += tree.orelse
            case ast.Import():
                found |= {alias.name for alias in tree.names}
            case ast.ImportFrom():
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                parents = package.split(".")[: 1 - tree.level or None] if tree.level else []
                source = ".".join([*parents, *([tree.module] if tree.module else [])])
                names = {f"{source}.{alias.name}" for alias in tree.names}
                found |= {name if name in files else source for name in names}
            case _:
                trees += ast.iter_child_nodes(tree)
    return found & files.keys()


def find_circle(graph: dict[str, list[str]]) -> list[str]:
    """The modules of one circle in order, the first again at its end; empty where there is none."""
    done = set[str]()

    def search(trail: list[str]) -> list[str]:
        for name in graph[trail[-1]]:
            if name in trail:
                return [*trail[trail.index(name) :], name]
            if name not in done and (circle := search([*trail, name])):
                return circle
        done.add(trail[-1])
        return []

    return next((circle for name in graph if name not in done and (circle := search([name]))), [])


def test_a_circle_is_found_and_named_in_order():
    graph = {"a": ["b"], "b": ["c", "d"], "c": [], "d": ["e"], "e": ["b"]}
    assert find_circle(graph) == ["b", "d", "e", "b"]
    assert not find_circle({**graph, "e": ["c"]})


@pytest.mark.torch
@pytest.mark.parametrize("backend", ["torch", "flax"])
def test_a_file_loads_with_one_framework_installed(backend, tmp_path):
    import convert
    import torch_resnet

    path = tmp_path / "m.safetensors"
    convert.save(path, torch_resnet.create("ResNet20", 10))
    forbidden = JAX if backend == "torch" else TORCH
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({forbidden!r}))\n"
        f"import convert; print(type(convert.load({str(path)!r}, backend={backend!r})).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "ResNet", run.stderr


@pytest.mark.torch
@pytest.mark.parametrize(
    ("absent", "arguments", "says"),
    [
        (
            "orbax",
            ["export", "run", "-o", "new.safetensors"],
            "this needs the package orbax",
        ),
        (
            "torch",
            ["export", "m.safetensors", "--format", "onnx", "-o", "new.onnx"],
            ".onnx files need the package torch",
        ),
    ],
)
def test_a_package_that_is_absent_is_named_and_what_needs_it_is_called_whole(
    absent, arguments, says, tmp_path
):
    import convert
    from convert.files import read_weights
    from convert.runs.saved_run import write_run
    from tests.twins import make_twins

    path = tmp_path / "m.safetensors"
    convert.save(path, make_twins("WideResNet16-1-0.0")[1])
    write_run(tmp_path / "run", read_weights(path))
    code = (
        "import sys\n"
        f"sys.modules[{absent!r}] = None\n"
        "from convert.__main__ import main\n"
        f"sys.exit(main({arguments!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_refused(run, says, "install")
    assert not list(tmp_path.glob("new.*"))


@pytest.mark.torch
def test_files_of_torch_are_read_and_written_where_there_is_no_torch(tmp_path):
    """Nor zlib-ng, which `pip install --no-deps` leaves out."""
    import torch

    import convert
    from tests.twins import assert_same_state, make_twins

    _, model = make_twins("ResNet20", dtype="float32")
    torch.save(model.state_dict(), tmp_path / "m.pt")
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'zlib_ng')))\n"
        "import convert\n"
        "convert.save('new.pt', convert.load('m.pt', backend='flax'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert_same_state(torch.load(tmp_path / "new.pt"), model.state_dict())
    assert convert.load(tmp_path / "new.pt", backend="torch").spec == model.spec


def test_only_one_file_names_pmap_and_one_torch_and_few_import_convert():
    root = ROOT / "train"
    texts = {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*.py")}
    assert "results/table_command.py" in texts

    def with_lines(pattern: str) -> list[str]:
        return [name for name, text in texts.items() if re.search(pattern, text, re.MULTILINE)]

    assert with_lines(r"\bpmap\(") == ["step/parallel.py"]
    assert with_lines(r"^\s*(from|import) torch\w*\b") == ["run/export.py"]
    of_runs = ["checkpoints", "retention", "run_folder", "saved_state"]  # a run's format on disk
    expected = [f"run/{name}.py" for name in of_runs]
    assert sorted(with_lines(r"^\s*(from|import) convert\.runs\.")) == expected
    assert sorted(with_lines(r"^\s*(from|import) convert\b")) == sorted(
        [
            "results/record.py",  # for `convert.atomic` alone
            "run/check_command.py",
            "run/elsewhere.py",
            "run/export.py",
            "run/json_files.py",  # for `convert.atomic` alone
            *expected,
        ]
    )
