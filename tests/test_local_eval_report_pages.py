"""The pages on a small real data set: every section, nothing from outside, broken runs named; in a real browser too."""

import html
import json
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kit.methods import get_method
from local_eval.__main__ import main
from local_eval.dry_run.judge import _samples
from local_eval.pool import ModelPool
from local_eval.recipes import GIVEN
from local_eval.report.comparison import SECTIONS as OF_COMPARISON
from local_eval.report.facts import where_options
from local_eval.report.page import SECTIONS as OF_EVALUATION
from local_eval.report.plots.style import DARK, LIGHT
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace, reopen
from local_eval.unlearned import fill_unlearned

SETTING = Setting(
    source="digits", n_train=300, forget="random:30", architecture="tinyconv", epochs=1, n_retain_sample=100
)
OPTIONS = {"devices": ["cpu"], "progress": False}
METHODS = ("finetune", "random_perturbation", "negative_gradient")
N = 8
ON_PHONE, ON_DESK = 390, 1280


@pytest.fixture(scope="module", autouse=True)
def quick_prediction():
    """The prediction at N = 512 is drawn from few simulations: what is tested here are the pages."""
    with pytest.MonkeyPatch.context() as patch:
        assess = sys.modules["local_eval.assess"]
        patch.setattr(assess, "predict_quality", partial(assess.predict_quality, n_simulated=20, n_refits=2))
        yield


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A setting's folder with N retrained models and N of three methods, and the pools' folders."""
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("runs"))
    fill_retrained(workspace, N, **OPTIONS)
    pools = [fill_unlearned(workspace, get_method(name), N, **OPTIONS) for name in METHODS]
    return workspace.folder, [pool.folder for pool in pools]


@pytest.fixture(scope="module")
def pages(filled):
    """What `report` writes for three methods: name -> file; and a page of a broken run."""
    folder, pools = filled
    assert main(["report", *map(str, pools), "--quiet"]) == 0
    found = {pool.name.partition("-")[0]: pool / "report.html" for pool in pools}
    return {**found, "comparison": folder / "comparison.html"}


@pytest.fixture
def copied(filled, tmp_path):
    """A copy that a test may break: its folder, and those of the pools."""
    folder, pools = filled
    shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.html"))
    return tmp_path / folder.name, [tmp_path / folder.name / pool.name for pool in pools]


class Elements(HTMLParser):
    """Every element with its attributes, and all text outside of styles and pictures."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self._inside = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag in ("style", "svg"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def read(path):
    return Elements(path.read_text(encoding="utf-8"))


def sections_of(name):
    return [key for key, _ in (OF_COMPARISON if name == "comparison" else OF_EVALUATION)]


@pytest.mark.parametrize("name", [*METHODS, "comparison"])
def test_a_page_has_every_section_and_needs_nothing_but_itself(pages, name):
    text = pages[name].read_text(encoding="utf-8")
    page = read(pages[name])
    assert [section["id"] for section in page.of("section")] == sections_of(name)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, a in page.found if a.get("href") != "data:,"}
    for tag, attributes in page.found:
        address = attributes.get("src") or (attributes.get("href") if tag not in ("a", "use") else None)
        assert address is None or address.startswith("data:"), (tag, address)
    assert not re.findall(r"https?://(?!www\.w3\.org/)[^\s\"']+|@import|url\((?!#)", text)
    assert all(image.get("alt") for image in page.of("img"))
    pictures = page.of("svg")
    assert pictures and all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in pictures)
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(text.encode()) < 3_000_000
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text)


def test_the_page_says_fault_next_step_and_numbers(pages):
    page = read(pages["finetune"])
    assert "vary too little between runs" in page.text and "try next: noise on the weights" in page.text
    assert f"Undecided: {N} models are too few" in page.text
    assert "This is the starter's own fine-tuning" in page.text
    assert len([i for i in page.of("img") if i["alt"].startswith("forgotten image")]) == 8
    maps = [i for i in page.of("img") if i["alt"].startswith("where the ")]
    assert len(maps) == 6 * 3, "three models on three forgotten and three retained images"
    for line in ("U-LiRA AUC", "delta 1e-05", "unlearning seed", "python -m local_eval run --source digits"):
        assert line in page.text


def test_the_command_on_the_page_is_that_of_the_pool(pages, filled):
    command = re.search(r"<pre>(python -m local_eval run --source.*?)</pre>", pages["finetune"].read_text()).group(1)
    for option in ("--n-train 300", "--forget random:30", "--architecture tinyconv", "--epochs 1", "--n-models 8"):
        assert option in command
    assert "--recipe" not in command, "the default is left out"


def test_the_comparison_ranks_links_and_correlates(pages, filled):
    page, text = read(pages["comparison"]), pages["comparison"].read_text()
    links = {a["href"] for a in page.of("a") if not a["href"].startswith("#")}
    assert links == {f"{pool.name}/report.html" for pool in filled[1]}
    assert all((pages["comparison"].parent / link).exists() for link in links)
    assert "starting kit" in text and "expected place" in text
    assert len([i for i in page.of("img") if i["alt"].startswith("forgotten image")]) == 6


def test_every_verdict_ends_in_a_command(pages, filled):
    folder, _ = filled
    for name, path in pages.items():
        text = path.read_text()
        box = text[text.index('<div class="verdict') :].partition("</section>")[0]
        method = name if name != "comparison" else max(METHODS, key=lambda one: f"{one} leads" in box)
        command = html.unescape(re.search(r"<pre>(.*?)</pre>", box)[1])
        assert command == f"python -m local_eval run --setting {folder} --method {method} --n-models 64"
    roles = re.findall(r"fill: var\(--(\w+)\)", (folder / "comparison.html").read_text())
    assert {"unlearned", "retain", "forget", "retrained"} <= set(roles)


def test_json_and_no_escape_codes(filled, capsys):
    assert main(["report", str(filled[1][0]), "--json", "--quiet", "--no-saliency"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["faults"] == {} and facts["verdicts"]["finetune"]["upload"] is None
    assert "try next" in facts["verdicts"]["finetune"]["fault"]
    assert "\x1b" not in out + err and err == ""


def test_out_names_the_file(filled, tmp_path):
    out = tmp_path / "page.html"
    assert main(["report", str(filled[1][0]), "--out", str(out), "--quiet", "--no-saliency"]) == 0
    assert "Left out, as asked for" in read(out).text


def break_model(pool, index):
    path = pool / f"model_{index:05d}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["forget"] = np.full_like(arrays["forget"], np.nan)
    np.savez(path, **arrays)


def test_a_dry_run_tells_outputs_that_are_not_finite(copied):
    workspace, pool = reopen(copied[0]), ModelPool.open(copied[1][0])
    samples, check = _samples(workspace, "mine", pool, N)
    assert check.ok and samples is not None
    break_model(copied[1][0], 3)
    samples, check = _samples(workspace, "mine", pool, N)
    assert samples is None and not check.ok and "NaN or infinite logits" in check.found


def test_a_page_with_broken_checkpoints_says_which(copied, capsys):
    break_model(copied[1][0], 3)
    assert main(["report", str(copied[1][0]), "--quiet"]) == 1
    page = read(copied[1][0] / "report.html")
    assert "Nothing can be said" in page.text and "model_00003.npz: has NaN or infinite logits" in page.text
    assert [section["id"] for section in page.of("section")] == sections_of("finetune")
    assert not page.of("svg") and not page.of("img"), "no picture of nonsense"
    assert "NaN" in capsys.readouterr().out


def test_a_comparison_with_one_broken_and_one_missing_compares_the_rest(copied):
    folder, pools = copied
    break_model(pools[2], 0)
    for index in range(4, N):
        (pools[1] / f"model_{index:05d}.npz").unlink()
    assert main(["report", *map(str, pools), str(folder / "never-made"), "--quiet", "--no-saliency"]) == 1
    page = read(folder / "comparison.html")
    assert "never-made: does not exist" in page.text
    assert "model_00000.npz: has NaN" in page.text
    assert f"holds 4 of {N} models" in page.text
    assert "finetune leads" in page.text and page.of("svg")
    assert "can be asked of three methods or more: here are 1" in page.text


def test_too_few_models_give_a_page_without_pictures_of_chance(copied):
    pool = copied[1][0]
    assert main(["report", str(pool), "--n-models", "4", "--quiet", "--no-saliency"]) == 0
    page = read(pool / "report.html")
    assert "Nothing can be said: 4 models are too few" in page.text
    assert page.text.count("below 8 models this says nothing") == 3, "epsilons, images, attacks"
    assert len(page.of("svg")) == 5, "accuracies and time need few models"


def test_an_interrupted_pool_says_that_it_holds_the_others_back(copied):
    folder, pools = copied
    (pools[0] / "model_00003.npz").unlink()
    assert main(["report", *map(str, pools[:2]), "--quiet", "--no-saliency", "--n-models", str(N)]) == 1
    assert f"holds 3 of {N} models" in read(folder / "comparison.html").text
    shutil.copy(pools[0] / "model_00002.npz", pools[0] / "model_00003.npz")
    for pool in (pools[1], folder / "retrained"):
        shutil.copy(pool / "model_00002.npz", pool / f"model_{N:05d}.npz")
    assert main(["report", *map(str, pools[:2]), "--quiet", "--no-saliency"]) == 0
    whole = read(folder / "comparison.html").text
    assert f"Only {N} models of each kind are counted, as finetune has no more" in whole
    assert f"score with {N + 1} models" in read(pools[1] / "report.html").text


def test_without_retrained_models_the_page_says_so(copied):
    folder, pools = copied
    shutil.rmtree(folder / "retrained")
    assert main(["report", str(pools[0]), "--quiet"]) == 1
    assert "0 models" in read(pools[0] / "report.html").text


def test_a_comparison_leaves_the_page_of_the_larger_pool_whole(copied, capsys):
    folder, pools = copied
    workspace = reopen(folder)
    fill_retrained(workspace, N + 1, **OPTIONS)
    fill_unlearned(workspace, get_method("finetune"), N + 1, **OPTIONS)
    for few in ([], ["--n-models", str(N)]):
        assert main(["report", *map(str, pools[:2]), *few, "--no-saliency", "--quiet"]) == 0
        assert f"score with {N + 1} models" in read(pools[0] / "report.html").text
        assert f"score with {N} models" in read(pools[1] / "report.html").text
        assert f"{N} of each kind" in read(folder / "comparison.html").text


def test_an_own_method_has_maps_and_a_command_that_runs(copied, participant, capsys):
    folder, _ = copied
    own = participant("import torch\ndef unlearning(net, a, b, c, by=1.0): net.fc.bias.data += by * torch.randn(10)")
    words = ["run", "--setting", str(folder), "--method", own, "--set", "by=0.5", "--n-models", "4", "--slots", "1"]
    assert main([*words, "--quiet", "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out)["page"])
    text = page.read_text()
    assert "is left out" not in text
    assert text.count("original") and len(re.findall(r'class="row"', text)) > 1
    participant("def unlearning(net, a, b, c, by=2.0): net.fc.bias.data += by")
    assert main(["report", str(page.parent), "--quiet"]) == 0
    assert "The unlearned model is left out: mine was changed since." in page.read_text()


def test_data_that_was_given_is_reached_by_its_folder(copied, tmp_path):
    workspace = reopen(copied[0])
    options = [word for word in where_options(workspace) if word.startswith("--")]
    assert "--source" in options and "--setting" not in options
    for changed in ({"source": "data:mine"}, {"recipe": f"{GIVEN}0123"}):
        other = replace(workspace, setting=replace(workspace.setting, **changed))
        assert where_options(other) == ["--setting", str(workspace.folder)]


def test_a_folder_that_is_no_pool_is_one_line(filled, capsys):
    assert main(["report", str(filled[0] / "nothing")]) == 2
    assert "nothing: does not exist" in capsys.readouterr().err
    assert main(["report", str(filled[1][0]), "--n-models", "1"]) == 2


def test_names_are_escaped_and_twins_told_apart_by_what_differs(copied, filled):
    folder, pools = copied
    twin = folder / "twin"
    shutil.copytree(pools[0], twin)
    identity = json.loads((twin / "pool.json").read_text())
    identity["hyper"]["lr"] = "<b>0.1</b>"
    (twin / "pool.json").write_text(json.dumps(identity))
    assert ModelPool.open(twin).identity == identity
    assert main(["report", str(pools[0]), str(twin), "--quiet", "--no-saliency"]) == 0
    text = (folder / "comparison.html").read_text()
    assert "finetune lr=0.001" in text and "finetune lr=&lt;b&gt;0.1&lt;/b&gt;" in text
    assert "<b>0.1" not in text


def test_run_ends_with_the_page(tmp_path, capsys):
    options = ["--source", "digits", "--n-train", "300", "--forget", "random:30", "--architecture", "tinyconv"]
    options += ["--epochs", "1", "--quiet", "--slots", "1", "--n-models", "2", "--work-dir", str(tmp_path)]
    assert main(["run", *options]) == 0
    assert "finetune: Nothing can be said: 2 models are too few" in capsys.readouterr().out
    page = next(tmp_path.glob("*/finetune-*/report.html"))
    page.unlink()
    assert main(["run", *options, "--no-page"]) == 0
    assert not page.exists()


@pytest.fixture(scope="module")
def browser():
    """A headless chromium that reaches no network and notes what it asks for and complains about."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: requirements-dev.txt")
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program, service = next(filter(None, programs), None), shutil.which("chromedriver")
    if program is None or service is None:
        pytest.skip("no chromium with chromedriver on this machine: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


def show(browser, path, width, theme="light", media=""):
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())


TOO_WIDE = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg'))
  .filter(e => { const r = e.getBoundingClientRect(); return r.right > innerWidth + 1 || r.left < -1 })
  .map(e => e.tagName + ' ' + e.className)"""
TEXTS_IN_THE_WAY = """
const faults = [], box = e => e.getBoundingClientRect();
for (const svg of document.querySelectorAll('svg')) {
  const frame = box(svg), texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
  for (const t of texts) {
    const r = box(t);
    const inside = r.left > frame.left - 6 && r.right < Math.min(innerWidth, frame.right + 6)
      && r.top > frame.top - 6 && r.bottom < frame.bottom + 6;
    if (!inside) faults.push('cut: ' + t.textContent);
    if (r.height < 5.5) faults.push('small: ' + t.textContent);
    for (const other of texts) {
      if (other === t) break;
      const o = box(other);
      const w = Math.min(r.right, o.right) - Math.max(r.left, o.left);
      const h = Math.min(r.bottom, o.bottom) - Math.max(r.top, o.top);
      if (w > 2 && h > 0.3 * Math.min(r.height, o.height)) faults.push(other.textContent + ' on ' + t.textContent);
    }
  }
}
return faults"""


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
