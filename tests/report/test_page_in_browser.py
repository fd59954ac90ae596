"""report.html in a headless Chromium: it plays, the knob moves its point, nothing is loaded or logged, no width overflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import OpenPage, browser, open_page  # noqa: F401
from made_study import line, write_logs, write_study

from cfg_distill.report import write_report

pytest.importorskip("soundfile", reason="the audio extra is missing")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up study of tunes, with more metrics than a phone has room for."""
    systems = line()
    for each in systems:
        for number in range(6):
            metric = f"another_quality_{number}"
            each.axes[metric], each.values[metric] = "quality", each.values["quality"]
    study = write_study(tmp_path_factory.mktemp("study") / "study", systems, prompts=3)
    write_logs(study / "fits" / "quality")
    return write_report(study)


@pytest.fixture(scope="module")
def report_of_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_study(tmp_path_factory.mktemp("text") / "study", kind="text", prompts=3))


def overflow(page: Any) -> list[str]:
    """The elements that are wider than the window, other than what lies in a box that scrolls by itself."""
    return page.evaluate(
        """() => [...document.querySelectorAll("body *")]
            .filter((each) => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth + 1)
            .map((each) => each.outerHTML.slice(0, 80))"""
    )


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_no_width_overflows(open_page: OpenPage, report: Path, report_of_text: Path, width: int, dark: bool) -> None:  # noqa: F811
    for file in (report, report_of_text):
        page = open_page(file, width=width, dark=dark)
        for details in page.query_selector_all("details"):
            details.evaluate("(each) => { each.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert overflow(page) == []


def test_light_and_dark(open_page: OpenPage, report: Path) -> None:  # noqa: F811
    colours = [
        open_page(report, dark=dark).evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        for dark in (False, True)
    ]
    assert colours[0][0] == "rgb(255, 255, 255)" and colours[0] != colours[1]


def test_a_sample_plays_and_another_stops_it(open_page: OpenPage, report: Path) -> None:  # noqa: F811
    page = open_page(report)
    buttons = page.locator(".prompt[open] .system[data-system='half'] .player button")
    assert buttons.count() == 2
    assert buttons.nth(0).get_attribute("aria-label") == "Play half, sample 1: a jig in D"
    buttons.nth(0).click()
    page.wait_for_function("[...document.querySelectorAll('audio')].some((each) => each.currentTime > 0.05)")
    assert buttons.nth(0).get_attribute("aria-label").startswith("Pause half")
    page.evaluate("for (const each of document.querySelectorAll('audio')) each.loop = true")  # none ends by itself
    buttons.nth(1).click()
    playing = "[...document.querySelectorAll('audio')].filter((each) => !each.paused).map((each) => each.src)"
    page.wait_for_function(f"({playing}).some((each) => each.endsWith('half-01-2.ogg'))")
    assert len(page.evaluate(playing)) == 1
    page.evaluate("for (const each of document.querySelectorAll('audio')) each.loop = false")
    page.wait_for_function(f"({playing}).length === 0")


def test_sound_inside_the_page_plays(open_page: OpenPage, tmp_path: Path) -> None:  # noqa: F811
    page = open_page(write_report(write_study(tmp_path / "study", prompts=1), inline=True))
    page.locator(".prompt[open] .player button").first.click()
    page.wait_for_function("[...document.querySelectorAll('audio')].some((each) => each.currentTime > 0.05)")


def cursors(page: Any) -> list[tuple[float, float]]:
    return [
        (float(each.get_attribute("cx")), float(each.get_attribute("cy")))
        for each in page.query_selector_all(".cursor")
    ]


def test_the_knob_moves_its_point_and_plays_the_nearest_model(open_page: OpenPage, report: Path) -> None:  # noqa: F811
    page = open_page(report)
    dots = {
        name: page.eval_on_selector_all(
            f".dot[data-system='{name}'] .hit",
            "(all) => all.map((c) => [+c.getAttribute('cx'), +c.getAttribute('cy')])",
        )
        for name in ("quality", "half", "diversity")
    }
    assert len(dots["half"]) == 2  # both panels
    dial = page.locator("#dial")
    assert dial.input_value() == "0.5"  # it begins at the choice
    for panel, (x, y) in enumerate(cursors(page)):
        assert [x, y] == pytest.approx(dots["half"][panel], abs=0.11)
    dial.focus()
    page.keyboard.press("End")
    for panel, (x, y) in enumerate(cursors(page)):
        assert [x, y] == pytest.approx(dots["diversity"][panel], abs=0.11)
    assert page.locator("#heard-name").inner_text() == "diversity"
    assert "diversity-01-1.ogg" in page.locator("#heard audio").first.get_attribute("src")
    page.evaluate(
        "() => { const d = document.getElementById('dial'); d.value = 0.25; d.dispatchEvent(new Event('input')); }"
    )
    for panel, (x, y) in enumerate(cursors(page)):
        middle = [(a + b) / 2 for a, b in zip(dots["quality"][panel], dots["half"][panel], strict=True)]
        assert [x, y] == pytest.approx(middle, abs=0.11)
    half, quality = (next(each for each in line() if each.name == name) for name in ("half", "quality"))
    between = (half.interval("diversity").mean + quality.interval("diversity").mean) / 2
    assert page.locator(".readout dd[data-metric='1']").inner_text() == f"≈ {between:.3f}"
    assert (
        page.locator("#knob-command").inner_text()
        == f"cfg-distill merge --knob 0.25 --study {report.parent} --out my-model"
    )
    assert "straight line" in dial.get_attribute("aria-valuetext")
    page.select_option("#heard-prompt", "2")
    page.locator("#heard .player button").first.click()
    page.wait_for_function("document.querySelector('#heard audio').currentTime > 0.05")
    assert "-03-1.ogg" in page.locator("#heard audio").first.get_attribute("src")


def test_beyond_the_last_measured_model_the_knob_stays_on_it(open_page: OpenPage, tmp_path: Path) -> None:  # noqa: F811
    """The student at knob 1 may be no system of the study, and the slider reaches 1 all the same."""
    rows = {"quarter": ("merge", 0.695, 0.45, 0.81, 0.0, 0.25), "diversity": None}
    page = open_page(write_report(write_study(tmp_path / "study", line(rows), prompts=1)))  # type: ignore[arg-type]
    page.locator("#dial").focus()
    page.keyboard.press("End")
    assert page.locator("#dial").input_value() == "1"
    last = page.eval_on_selector_all(
        ".dot[data-system='half'] .hit", "(all) => all.map((c) => [+c.getAttribute('cx'), +c.getAttribute('cy')])"
    )
    assert [list(place) for place in cursors(page)] == [pytest.approx(place, abs=0.11) for place in last]
    assert page.locator(".readout dd[data-metric='0']").inner_text() == "≈ 0.690"
    assert page.locator("#knob-note").inner_text().startswith("Not measured: beyond half, the last measured model")


def test_a_point_tells_its_numbers_to_pointer_and_keyboard(open_page: OpenPage, report: Path) -> None:  # noqa: F811
    page = open_page(report)
    tip, dot = page.locator("#tip"), page.locator("svg.front").first.locator(".dot[data-system='half']")
    assert tip.is_hidden()
    dot.locator(".mark").hover()
    said = tip.inner_text()
    assert said.startswith("half\nquality 0.690 [") and "1 pass per token" in said
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    dot.focus()
    assert tip.is_visible() and page.locator(".dot.lit").count() == 2  # the same system in both panels
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    place = page.evaluate("getComputedStyle(document.activeElement.querySelector('.mark')).strokeWidth")
    assert place == "3px"  # the focus is visible
    page.keyboard.press("ArrowRight")  # to the next point on the right
    assert tip.inner_text().split("\n")[0] == "base"
    page.keyboard.press("End")
    assert tip.inner_text().split("\n")[0] == "diversity"
    assert page.locator("svg.front").first.locator("[tabindex='0']").count() == 1


def test_all_is_reached_by_the_keyboard(open_page: OpenPage, report: Path) -> None:  # noqa: F811
    page = open_page(report)
    reached: set[str] = set()
    reach = """() => {
        const here = document.activeElement;
        return here.id || here.closest(".player, .dot, summary")?.getAttribute("class") || "";
    }"""
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(reach))
    assert {"dial", "heard-prompt", "player"} <= reached and any(each.startswith("dot") for each in reached)
    button = page.locator(".prompt[open] .player button").first
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("[...document.querySelectorAll('audio')].some((each) => each.currentTime > 0.05)")
    outline = button.evaluate("(each) => getComputedStyle(each).outlineStyle")
    assert outline == "solid"


def test_without_scripts_the_samples_still_play(open_page: OpenPage, report: Path) -> None:  # noqa: F811
    page = open_page(report, java_script_enabled=False)
    assert page.locator("audio[controls]").count() == 5 * 3 * 2
    assert page.locator("h1").inner_text() == "Ship half, knob 0.5"


def test_a_script_in_a_prompt_stays_text(open_page: OpenPage, report: Path, report_of_text: Path) -> None:  # noqa: F811
    for file in (report, report_of_text):
        page = open_page(file)
        page.on("dialog", lambda dialog: pytest.fail(f"a prompt was run: {dialog.message}"))
        page.reload()
        assert '<script>alert("x")</script>' in page.locator(".prompt > summary").nth(2).inner_text()
