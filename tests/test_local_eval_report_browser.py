"""The pages in a real browser: whole at every width and in both themes, nothing in the way, nothing from outside."""

import json

import pytest

from local_eval.__main__ import main
from local_eval.report.plots.style import DARK, LIGHT
from tests.browser import ON_DESK, ON_PHONE, TEXTS_IN_THE_WAY, TOO_WIDE, show
from tests.report_pages import break_model, sections_of


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [ON_DESK, ON_PHONE])
@pytest.mark.parametrize("name", ["random_perturbation", "comparison"])
def test_a_browser_shows_it_whole(pages, browser, name, width, theme):
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what earlier pages left
    show(browser, pages[name], width, theme)
    sections = (
        "[...document.querySelectorAll('section')].map(s => [s.id, s.offsetHeight, s.querySelector('h2').innerText])"
    )
    shown = browser.execute_script(f"return {sections}")
    assert [key for key, *_ in shown] == sections_of(name)
    assert all(height > 60 and heading for _, height, heading in shown)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(TOO_WIDE) == []
    assert browser.execute_script(TEXTS_IN_THE_WAY) == []
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    assert browser.execute_script(broken) == []
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    expected = (LIGHT if theme == "light" else DARK)["paper"]
    assert paper == f"rgb({', '.join(str(int(expected[i : i + 2], 16)) for i in (1, 3, 5))})"
    assert browser.get_log("browser") == [], "errors and warnings of the console"
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {pages[name].as_uri()}, "nothing leaves the page"


def test_the_browser_would_see_texts_in_the_way_and_what_is_too_wide(browser, tmp_path):
    text = "<text y='{}' x='{}' style='font-size:10px'>some words</text>"
    drawn = "".join(text.format(*at) for at in ((20, 5), (22, 8), (60, 150)))
    (tmp_path / "page.html").write_text(
        f"<svg width='160' height='80'>{drawn}</svg><div style='width: 2000px'>wide</div>"
    )
    show(browser, tmp_path / "page.html", ON_DESK)
    assert browser.execute_script(TEXTS_IN_THE_WAY) == ["some words on some words", "cut: some words"]
    assert browser.execute_script(TOO_WIDE) == ["DIV "]


def test_a_browser_shows_a_broken_run(copied, browser):
    break_model(copied[1][0], 3)
    assert main(["report", str(copied[1][0]), "--quiet"]) == 1
    show(browser, copied[1][0] / "report.html", ON_PHONE)
    assert "Nothing can be said" in browser.execute_script("return document.querySelector('.answer').innerText")
    assert browser.execute_script(TOO_WIDE) == []


def test_it_is_printed_light_whatever_the_screen(pages, browser):
    show(browser, pages["random_perturbation"], 800, "dark", media="print")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert len(printed) > 50_000
