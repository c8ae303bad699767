"""The pages on a small real data set: every section, nothing from outside, broken runs named."""

import base64
import html
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kit.methods import get_method
from local_eval.__main__ import main
from local_eval.dry_run.judge import _samples
from local_eval.pool import ModelPool
from local_eval.recipes import GIVEN
from local_eval.report.facts import where_options
from local_eval.report.html import png_uri
from local_eval.retrained import fill_retrained
from local_eval.setting import reopen
from local_eval.unlearned import fill_unlearned
from tests.report_pages import break_model, read, sections_of

pytestmark = pytest.mark.usefixtures("rough_predictions")
OPTIONS = {"devices": ["cpu"], "progress": False}
METHODS = ("finetune", "random_perturbation", "negative_gradient")
N = 8


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


def test_the_command_on_the_page_is_that_of_the_pool(pages, evaluated):
    command = re.search(r"<pre>(python -m local_eval run --source.*?)</pre>", pages["finetune"].read_text()).group(1)
    for option in ("--n-train 300", "--forget random:30", "--architecture tinyconv", "--epochs 1", "--n-models 8"):
        assert option in command
    assert "--recipe" not in command, "the default is left out"


def test_the_comparison_ranks_links_and_correlates(pages, evaluated):
    page, text = read(pages["comparison"]), pages["comparison"].read_text()
    links = {a["href"] for a in page.of("a") if not a["href"].startswith("#")}
    assert links == {f"{pool.name}/report.html" for pool in evaluated[1]}
    assert all((pages["comparison"].parent / link).exists() for link in links)
    assert "starting kit" in text and "expected place" in text
    assert len([i for i in page.of("img") if i["alt"].startswith("forgotten image")]) == 6


def test_every_verdict_ends_in_a_command(pages, evaluated):
    folder, _ = evaluated
    for name, path in pages.items():
        text = path.read_text()
        box = text[text.index('<div class="verdict') :].partition("</section>")[0]
        method = name if name != "comparison" else max(METHODS, key=lambda one: f"{one} leads" in box)
        command = html.unescape(re.search(r"<pre>(.*?)</pre>", box)[1])
        assert command == f"python -m local_eval run --setting {folder} --method {method} --n-models 64"
    roles = re.findall(r"fill: var\(--(\w+)\)", (folder / "comparison.html").read_text())
    assert {"unlearned", "retain", "forget", "retrained"} <= set(roles)


def test_json_and_no_escape_codes(evaluated, capsys, undrawn):
    assert main(["report", str(evaluated[1][0]), "--json", "--quiet", "--no-saliency"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["faults"] == {} and facts["verdicts"]["finetune"]["upload"] is None
    assert "try next" in facts["verdicts"]["finetune"]["fault"]
    assert "\x1b" not in out + err and err == ""


def test_out_names_the_file(evaluated, tmp_path, undrawn):
    out = tmp_path / "page.html"
    assert main(["report", str(evaluated[1][0]), "--out", str(out), "--quiet", "--no-saliency"]) == 0
    assert "Left out, as asked for" in read(out).text


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


def test_a_comparison_with_one_broken_and_one_missing_compares_the_rest(copied, undrawn):
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
    assert page.text.count("below 8 models and two images this says nothing") == 3, "epsilons, images, attacks"
    assert len(page.of("svg")) == 5, "accuracies and time need few models"


def test_an_interrupted_pool_says_that_it_holds_the_others_back(copied, undrawn):
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


def test_a_comparison_leaves_the_page_of_the_larger_pool_whole(copied, capsys, undrawn):
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


def test_data_that_was_given_is_reached_by_its_folder(copied, tmp_path):
    workspace = reopen(copied[0])
    options = [word for word in where_options(workspace) if word.startswith("--")]
    assert "--source" in options and "--setting" not in options
    for changed in ({"source": "data:mine"}, {"recipe": f"{GIVEN}0123"}):
        other = replace(workspace, setting=replace(workspace.setting, **changed))
        assert where_options(other) == ["--setting", str(workspace.folder)]


def test_a_folder_that_is_no_pool_is_one_line(evaluated, capsys):
    assert main(["report", str(evaluated[0] / "nothing")]) == 2
    assert "nothing: does not exist" in capsys.readouterr().err
    assert main(["report", str(evaluated[1][0]), "--n-models", "1"]) == 2


def test_names_are_escaped_and_twins_told_apart_by_what_differs(copied, evaluated, undrawn):
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


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_are_shown(n_channels):
    pixels = np.random.default_rng(0).integers(0, 256, (n_channels, 5, 4), dtype=np.uint8)
    data = base64.b64decode(png_uri(pixels).partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        shown = np.asarray(image).transpose(2, 0, 1)
    expected = {1: pixels[[0, 0, 0]], 2: np.repeat(pixels.mean(0, keepdims=True).astype(np.uint8), 3, 0)}
    assert np.array_equal(shown, expected.get(n_channels, pixels[:3]))
