"""`resnet-train results --html`: the page in a real browser, without a network."""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import convert
from tests.commands import Process, assert_refused, run_here
from tests.conftest import DIGITS_RUNS
from tests.test_results import change, change_config

MODEL, SEEDS, STEPS = DIGITS_RUNS
ROOT = Path(__file__).parents[1]
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
}
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LIMIT = 90_000  # milliseconds for one action, on busy cores
pytestmark = pytest.mark.xdist_group("results")  # one worker trains for all


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed after these tests: while it is open, nothing else can run an event loop."""
    reason = "there is no Playwright: pip install playwright"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser, none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Any]]:
    """Opens a page that may use nothing but itself; in the end it has reported no error."""
    contexts, problems = [], list[str]()

    def call(path: Path, **options: Any) -> Any:
        context = browser.new_context(offline=True, **options)
        context.set_default_timeout(LIMIT)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(f"{line.type}: {line.text}"))
        page.on("request", lambda request: asked.append(request.url))
        asked: list[str] = []
        page.goto(path.as_uri())
        page.wait_for_selector(".chart .main-svg")
        assert set(asked) == {path.as_uri()}
        return page

    yield call
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def shown(digits_runs, tmp_path_factory) -> Path:
    """The page of the real runs: one row of two seeds, one of a run that has not ended."""
    folder = shutil.copytree(digits_runs, tmp_path_factory.mktemp("page") / "runs")
    stop_early(shutil.copytree(folder / "seed-111", folder / "slow" / "seed-111"))
    change_config(folder / "slow" / "seed-111", learning_rate=0.02)
    write_page(folder)
    return folder / "results.html"


def stop_early(folder: Path) -> None:
    """Makes a finished run one that is under way."""
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:4]))
    for name in ("result.json", "model.safetensors"):
        (folder / name).unlink()


def write_page(*words: Any) -> None:
    result = run_here("train", "results", *words, "--html", cwd=Path.cwd())
    assert result.returncode == 0, result.stderr
    assert "results.html" in result.stdout


def x_range(page: Any, chart: str = "chart-error") -> list[float]:
    return page.evaluate(f"document.getElementById('{chart}').layout.xaxis.range")


def test_the_table_is_sorted_by_its_headings_with_mouse_and_keyboard(opened, shown):
    page = opened(shown)
    rates = ["learning_rate 0.02", "learning_rate 0.1"]

    def order() -> list[str]:
        return page.locator("tbody th small").all_inner_texts()

    assert order() == rates
    heading = page.get_by_role("columnheader", name="error %")
    page.get_by_role("button", name="error %").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert order() == rates[::-1]  # the unfinished run has no number, and comes last
    button = page.get_by_role("button", name="model", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    assert order() == rates
    page.keyboard.press("Enter")
    assert order() == rates[::-1]
    assert heading.get_attribute("aria-sort") == "none"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "parameters"


def test_the_error_is_shown_with_its_standard_error_and_the_weights_can_be_loaded(opened, shown):
    page = opened(shown)
    results = [json.loads((shown.parent / f"seed-{s}/result.json").read_text()) for s in SEEDS]
    mean = sum(result["error"] for result in results) / 2
    row = page.locator("tbody tr", has_text="learning_rate 0.1")
    assert f"{100 * mean:.2f} ± " in row.inner_text()
    (points,) = page.evaluate("document.getElementById('chart-published').data")
    assert points["x"] == pytest.approx([100 * mean])
    spread = 100 * (mean * (1 - mean) / 360) ** 0.5
    assert points["error_x"]["array"] == pytest.approx([spread])
    for seed in SEEDS:
        name = f"weights of {MODEL}, seed {seed}"
        address = page.get_by_role("link", name=name).get_attribute("href")
        assert address == f"seed-{seed}/model.safetensors"
        convert.load(shown.parent / address, backend="torch")
    commands = page.locator("pre").all_inner_texts()
    assert any("--seeds 111,222" in line and line.startswith("resnet-train") for line in commands)
    assert f"resnet-train --resume --run-dir {shown.parent / 'slow/seed-111'}" in commands


def test_a_curve_tells_its_values_and_is_zoomed_by_mouse_and_keyboard(opened, shown):
    page = opened(shown)
    chart = page.locator("#chart-error")
    chart.scroll_into_view_if_needed()
    whole = x_range(page)
    box = page.locator("#chart-error .nsewdrag").bounding_box()
    results = [json.loads((shown.parent / f"seed-{s}/result.json").read_text()) for s in SEEDS]
    last = f"{100 * sum(result['error'] for result in results) / 2:.2f} %"
    page.mouse.move(box["x"] + box["width"] * 0.98, box["y"] + box["height"] / 2)
    page.wait_for_function(
        f"document.querySelector('#chart-error .hoverlayer').textContent.includes('{last}')"
    )
    page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.8, steps=4)
    page.mouse.up()
    page.wait_for_function(
        f"document.getElementById('chart-error').layout.xaxis.range[0] > {whole[0]} + 0.5"
    )
    chart.focus()
    page.keyboard.press("0")
    assert x_range(page) == pytest.approx(whole)
    for key, is_changed in (("+", (1, -1)), ("ArrowRight", (1, 1)), ("-", (-1, 1))):
        before = x_range(page)
        page.keyboard.press(key)
        after = x_range(page)
        assert [(b > a) - (b < a) for a, b in zip(before, after, strict=True)] == [*is_changed]
    page.keyboard.press("0")
    zoom_in = page.locator("#chart-error").get_by_role("button", name="Zoom in")
    zoom_in.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        f"document.getElementById('chart-error').layout.xaxis.range[1] < {whole[1]} - 0.01"
    )


def test_a_row_is_hidden_in_all_curves_by_its_button(opened, shown):
    page = opened(shown)
    names = [f"chart-{name}" for name in ("error", "loss", "learning_rate")]
    count = "document.querySelectorAll('#{} .scatterlayer .js-line').length"
    before = [page.evaluate(count.format(name)) for name in names]
    button = page.locator(".legend button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    after = [page.evaluate(count.format(name)) for name in names]
    assert all(0 < few < many for few, many in zip(after, before, strict=True))


def test_dark_and_light_follow_the_system(opened, shown):
    page = opened(shown, color_scheme="light")

    def colours() -> tuple[str, ...]:
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('.xtick text')).fill,"
            " getComputedStyle(document.querySelector('#chart-loss .js-line')).stroke]"
        )

    light = colours()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        f"getComputedStyle(document.querySelector('#chart-loss .js-line')).stroke !== '{light[2]}'"
    )
    dark = colours()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    background, text = (sum(map(int, re.findall(r"\d+", c)[:3])) for c in dark[:2])
    assert background < 150 < text


def test_a_phone_shows_cards_and_needs_no_sideways_scrolling(opened, shown):
    page = opened(shown, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    card = page.locator("tbody tr", has_text="learning_rate 0.1")
    assert card.locator("td").first.evaluate("e => getComputedStyle(e).display") == "flex"
    assert card.bounding_box()["width"] < 390
    label = "e => getComputedStyle(e, '::before').content"
    assert card.locator("td[data-label='error %']").evaluate(label) == '"error %"'
    assert page.evaluate("document.getElementById('chart-error').layout.dragmode") is False


def test_the_page_of_a_run_that_is_training_follows_it_to_its_end(opened, digits_runs, tmp_path):
    """What the reader has set outlives each loading."""
    folder = shutil.copytree(digits_runs / "seed-111", tmp_path / "run")
    stop_early(folder)
    words = ("-m", "train", "results", folder, "--html", "--follow", "1")
    with Process([sys.executable, *map(str, words)], cwd=tmp_path) as process:
        deadline = time.monotonic() + LIMIT / 1000
        while not (folder / "results.html").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        page = opened(folder / "results.html")
        assert "step 12 of 24" in page.locator(".running").inner_text()
        page.get_by_role("checkbox").uncheck()
        page.locator("#chart-error").focus()
        page.keyboard.press("+")
        zoomed = x_range(page)
        for name in ("metrics.jsonl", "model.safetensors", "result.json"):
            shutil.copy(digits_runs / "seed-111" / name, folder / name)
        assert process.wait(LIMIT / 1000) == 0
        assert page.locator(".running").count() == 1  # nothing is loaded while it is unchecked
        page.get_by_role("checkbox").check()
        page.wait_for_function("!document.querySelector('.running')")
        page.wait_for_selector("#chart-error .main-svg")
        assert x_range(page) == pytest.approx(zoomed)
        assert page.get_by_role("checkbox").count() == 0


def test_the_committed_table_is_shown_beside_what_was_published(opened, tmp_path):
    write_page(ROOT / "results", "-o", tmp_path)
    page = opened(tmp_path / "results.html")
    table = json.loads((ROOT / "results" / "cifar10.json").read_text())
    measured = [row for row in table["rows"] if row["status"] == "measured"]
    papers, ours = page.evaluate("document.getElementById('chart-published').data")
    assert ours["x"] == pytest.approx([100 * row["error"]["mean"] for row in measured])
    figures = [figure for row in measured for figure in row["published_percent"]]
    assert papers["x"] == [figure["error"] for figure in figures]
    assert papers["error_x"]["array"] == [figure["std"] or 0 for figure in figures]
    whole = [row["schedule"] == "whole" and row["protocol"] == "full" for row in measured]
    symbols = ["circle" if is_whole else "circle-open" for is_whole in whole]
    assert ours["marker"]["symbol"] == symbols
    links = page.locator("tbody a").evaluate_all("links => links.map(link => link.href)")
    assert links == [(ROOT / "results" / row["weights"]["file"]).as_uri() for row in measured]
    absent = len(table["rows"]) - len(measured)
    page.get_by_text(f"{absent} networks with a published error were not run").click()
    assert page.locator("details[open] tbody tr").count() == absent


def test_names_and_options_are_text_on_the_page(opened, digits_runs, tmp_path):
    """Not markup, whatever a folder is called; and many rows have colours of their own."""
    runs = tmp_path / "<script>alert(1)</script>"
    for number in range(8):
        folder = shutil.copytree(digits_runs / "seed-111", runs / f"<b>{number}")
        change_config(folder, learning_rate=0.2 + number)
    stop_early(runs / "<b>0")
    change(runs / "<b>1" / "config.json", devices="<img src=x onerror=alert(1)>")
    write_page(runs)
    page = opened(runs / "results.html")
    assert page.locator("h1").inner_text() == runs.name
    assert page.locator("tbody b, tbody img").count() == 0
    assert "onerror" in page.locator("table").inner_text()
    colours = page.locator(".legend i").evaluate_all(
        "marks => marks.map(mark => getComputedStyle(mark).backgroundColor)"
    )
    assert len(set(colours)) == 8


def test_the_figures_are_valid_for_plotly(digits_runs):
    import plotly.graph_objects as go

    from train.results.collect import find_runs
    from train.results.figures import curve_figure, error_figure
    from train.results.groups import group_runs

    groups = group_runs(find_runs([digits_runs])[0])
    names = ("error", "loss", "learning_rate")
    for figure in (error_figure(groups), *(curve_figure(groups, name) for name in names)):
        text = json.dumps(figure, allow_nan=False)
        go.Figure(json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", text)))


def test_what_cannot_be_written_is_refused_in_one_sentence(digits_runs, tmp_path, monkeypatch):
    runs = shutil.copytree(digits_runs, tmp_path / "runs")
    result = run_here("train", "results", runs, "--follow", "0", cwd=tmp_path)
    assert_refused(result, "--follow writes the page of --html", "from 1 to 86400, not 0")
    monkeypatch.setitem(sys.modules, "plotly", None)
    result = run_here("train", "results", runs, "--html", cwd=tmp_path)
    assert_refused(result, "--html needs plotly", "flax-resnet[plot]")
    assert not [*runs.glob("results.*")]
