"""The Python in README and docs runs, line by line as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import convert
import torch_resnet
from tests.models_table import rows
from train.config.recipes import DEFAULT

ROOT = Path(__file__).parents[1]
# Pages of Python alone; in the others it needs the files that the commands between write.
PAGES = [ROOT / "README.md", ROOT / "docs" / "extending.md", ROOT / "docs" / "models.md"]
IN_ORDER = {
    "converting.md": (
        *("ours.npz", "ours.onnx", "ours.pt2", "timm-folder/config.json"),
        *("caffe50.safetensors", "resnet20.safetensors", "runs/b/result.json"),
    ),
    "training.md": (
        *("runs/tuned/result.json", "runs/seeds/curves.png", "results/digits.md"),
        *("runs/seeds/results.html", "first.svg"),
    ),
    "tpu.md": ("slice.pt",),
    "clusters.md": ("runs/two/model.safetensors",),
    "parity.md": ("port.html", "ours.safetensors", "diff.html"),
}
# Nothing to run: links, and what was measured by hours of training.
PROSE = [ROOT / "docs" / "README.md", ROOT / "docs" / "results.md"]


def python_blocks(page: Path) -> list[str]:
    """The fenced blocks of Python of a page."""
    parts = page.read_text().split("```python\n")[1:]
    return [part.partition("```")[0] for part in parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path):
    code = "\n".join(python_blocks(page))
    environment = {**os.environ, "XLA_FLAGS": ""}
    run = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_the_page_of_models_shows_the_whole_table():
    text = (ROOT / "docs" / "models.md").read_text()
    assert "\n".join(rows()) in text
    assert not [line for line in text.splitlines() if line.isupper() and line.isalpha()]


def test_what_is_installed_is_a_folder_with_extras_that_it_has():
    """No name of an index, where nobody has published this."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    texts = [page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))]
    found = [name for text in texts for name in re.findall(r"pip install '([^'\n]+)'", text)]
    assert len(found) >= 4
    for name in found:
        folder, _, rest = name.partition("[")
        assert folder == "." or folder.startswith("/"), name
        assert set(rest.rstrip("]").split(",")) <= set(extras), name


_RUN_PAGE = """
import re, subprocess, sys
from pathlib import Path
blocks = re.findall(f"^```({sys.argv[2]})\\n(.*?)^```", Path(sys.argv[1]).read_text(), re.S | re.M)
names = {}
for language, code in blocks:
    if language == "python":
        exec(compile(code, sys.argv[1], "exec"), names)
    else:
        subprocess.run(["bash", "-euxc", code], check=True)
assert blocks
"""


def download_for_converting(folder: Path) -> None:
    """What `console` lines of this page begin with: files of others."""
    for name, num_classes, layout, file in (
        ("ResNet50", 1000, "torchvision", "caffe50.pth"),
        ("ResNet20", 10, "cifar", "resnet20.th"),
    ):
        model = torch_resnet.from_spec(convert.layout_spec(name, layout), num_classes)
        torch.save(convert.to_layout(model.state_dict(), name, layout), folder / file)


@pytest.mark.slow
@pytest.mark.parametrize("page", IN_ORDER)
def test_a_page_of_python_and_commands_runs_in_the_order_in_which_it_stands(page, tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    languages = "python|sh"
    for checkout in ("docs", "examples"):
        (tmp_path / checkout).symlink_to(ROOT / checkout)
    if page == "converting.md":
        download_for_converting(tmp_path)
        languages += "|console"
    run = subprocess.run(
        [sys.executable, "-c", _RUN_PAGE, str(ROOT / "docs" / page), languages],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for file in IN_ORDER[page]:
        assert (tmp_path / file).is_file()


def test_every_page_is_run():
    assert {*PAGES, *PROSE, *(ROOT / "docs" / page for page in IN_ORDER)} == {
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
    }
    for page in PROSE:
        assert not re.search("```(python|sh)\n", page.read_text()), page


def test_every_link_leads_somewhere():
    """To a file, and to a heading of it where one is named."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    links = 0
    for page in (*pages, *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            name, _, heading = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page}: {link}"
            assert not heading or heading in headings(target), f"{page}: {link}"
            links += 1
    assert links > 50


def test_every_file_of_the_code_that_a_page_names_is_there():
    code = "resnet_spec|flax_resnet|torch_resnet|convert|train|tests|benchmarks|examples"
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    named = {
        path
        for page in (*pages, *(ROOT / "docs").glob("*.md"))
        for path in re.findall(rf"`((?:{code})/[\w/]*(?:\.py)?)`", page.read_text())
    }
    assert len(named) > 15
    assert not [path for path in named if not (ROOT / path).exists()]


def headings(page: Path) -> set[str]:
    """As GitHub names them in links: lower case, words joined by hyphens, no other signs."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
def test_the_shell_lines_of_the_readme_run_and_the_digits_reach_97_percent(tmp_path):
    """Those marked `sh`; the ones marked `console` need a data set, a download or make.

    Where `make quickstart` has trained by the first line already, as in CI, its run is taken.
    """
    parts = (ROOT / "README.md").read_text().split("```sh\n")[1:]
    lines = "\n".join(part.partition("```")[0] for part in parts)
    first = "resnet-train digits --run-dir runs/digits\n"
    assert lines.startswith(first)
    assert DEFAULT == "digits"
    if "QUICKSTART_RUN" in os.environ:
        shutil.copytree(os.environ["QUICKSTART_RUN"], tmp_path / "runs" / "digits")
        lines = lines.removeprefix(first)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.run(
        ["bash", "-euxc", lines],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for file in ("digits.safetensors", "digits.pt", "runs/again/model.safetensors"):
        assert (tmp_path / file).is_file()
    result = json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())
    assert result["error"] <= 0.03
