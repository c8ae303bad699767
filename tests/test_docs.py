"""README and docs: links lead somewhere, commands are understood, numbers are those of the records."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.claims import BOARDS, TABLES
from kit.__main__ import build_parser as kit_parser
from local_eval.__main__ import main as local_eval
from local_eval.commands.parser import build_parser as local_eval_parser
from local_eval.setting import LIKE, Setting
from local_eval.validity import validation_of, validation_together

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = {"METHOD": "finetune", "NAME": "finetune"}


def commands_of(page):
    """Lines of the code blocks that begin with python -m, and such words in backticks."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    found = [*lines, *(" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose))]
    return [line.strip() for line in found if line.strip().startswith("python -m ")]


COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands_of(page)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_every_module_is_named():
    text = (ROOT / "docs" / "files.md").read_text()
    folders = ["kit", "kit/tools", "kit/methods/shared", "kit/fisher", "data_stubs", "local_eval", "notebooks"]
    modules = [path for folder in folders for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("__")]
    shown = [path.stem if (ROOT / "notebooks" / f"{path.stem}.ipynb").exists() else path.name for path in modules]
    assert [name for name in shown if name not in text] == []


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_understood(page, command):
    words = shlex.split(command, comments=True)[2:]
    module, words = words[0], [PLACEHOLDERS.get(word, word) for word in words[1:]]
    parsers = {"local_eval": lambda: local_eval_parser(""), "kit": kit_parser}
    if module in parsers:
        if words:
            parsers[module]().parse_args(words)
    elif module != "pytest":
        assert importlib.util.find_spec(module), f"{page}: {command}"


def record(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["results"]


def seconds_of(results):
    """What a benchmark says that it took, None where it says nothing."""
    seconds = results.get("seconds")
    if isinstance(seconds, dict):
        seconds = sum(seconds.values())
    more = sum(results.get(name, 0) for name in ("seconds_again", "second_method_seconds"))
    return None if seconds is None else seconds + more


def test_every_record_is_made_again_by_a_command_of_its_own():
    text = (ROOT / "docs" / "reproduce.md").read_text()
    rows = re.findall(r"^\| .* \| \[(\w+)\]\(\.\./benchmarks/results/(\w+)\.json\) \| `(.*)` \| (.*) \|$", text, re.M)
    files = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert sorted(name for name, *_ in rows) == sorted(files)
    for name, file, command, took in rows:
        assert (file, command) == (name, files[name]["command"])
        seconds = seconds_of(files[name]["results"])
        shown = (
            "not recorded" if seconds is None else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        )
        assert took == shown, name


def test_the_names_in_a_report_are_those_of_the_page(tmp_path):
    words = ["run", "--source", "digits", "--n-train", "100", "--forget", "random:10", "--architecture", "tinyconv"]
    words += ["--epochs", "1", "--n-models", "2", "--no-page", "--slots", "1", "--quiet", "--work-dir", str(tmp_path)]
    assert local_eval(words) == 0
    (report,) = tmp_path.glob("*/finetune-*/report.json")
    facts = json.loads(report.read_text())
    text = (ROOT / "docs" / "score.md").read_text()
    table = text.partition("| in `report.json` | |\n|---|---|\n")[2].partition("\n\n")[0]
    assert {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])} == set(facts)
    assert f"Its `schema` is {facts['schema']}:" in text
    shown = table.partition("| `rows` |")[2].partition("\n")[0]
    assert set(re.findall(r"`(\w+)`", shown)) <= set(facts["rows"][0])


CLAIMS = {
    "time.md": [
        ("never passed in {runs} runs", "budget"),
        ("{checkpoints_by_the_stand_in} of 840 checkpoints by the stand-in", "budget"),
        ("{least_used:.0%} of the limit used at least, {median_used:.0%} in the median", "budget"),
        ("{kills_in_all} SIGKILLs over {archives_equal_to_the_uninterrupted} runs", "kills"),
        ("within 10% in {within_10_percent} of {trials} trials", "profile"),
        ("{mutants:,} mutants", "fuzz"),
    ],
    "scale.md": [
        (
            "{smallconv[images_per_s]:,.0f} images a second against {smallconv[plain_images_per_s]:,.0f} with",
            "training",
        ),
        ("{resnet18_narrow[images_per_s]:,.0f} against {resnet18_narrow[plain_images_per_s]:,.0f} (", "training"),
        ("| 1,000 | {score[0][s]:.1f} | {score[0][peak_mib]:.0f} | {score[1][s]:.1f} |", "score"),
        ("| 10,000 | {score[2][s]:.0f} | {score[2][peak_mib]:,.0f} | {score[3][s]:.1f} |", "score"),
        ("{pages[1][kb]:.0f} KB for {pages[1][n_examples]:,} examples, which", "page"),
        ("painted after {pages[1][first_s]:.2f} s", "page"),
    ],
    "score.md": [
        ("in {lowest_coverage_of_quality:.1%} to", "intervals"),
        ("score covers the truth | in {lowest_coverage_of_score:.1%} to", "intervals"),
        ("says {probability_above[0][said]:.1%} in the mean, and {probability_above[0][true]:.1%} are so", "intervals"),
        ("with 64 models {probability_above[1][said]:.1%} and {probability_above[1][true]:.1%}", "intervals"),
    ],
}


@pytest.mark.parametrize(
    ("page", "claim", "name"), [(page, *claim) for page, claims in CLAIMS.items() for claim in claims]
)
def test_numbers_are_those_of_the_records(page, claim, name):
    assert claim.format(**record(name)) in " ".join((ROOT / "docs" / page).read_text().split())


@pytest.mark.parametrize(("page", "head", "made"), TABLES)
def test_tables_of_what_was_measured_are_made_from_the_records(page, head, made):
    assert made() in (ROOT / page).read_text(), "python -m benchmarks.claims writes it"


def test_the_table_of_methods_is_that_of_the_record():
    rows = record("validity")["competition, methods"]["points"].values()
    text = (ROOT / "docs" / "validity.md").read_text()
    for row in rows:
        line = "| {kaggle:.4f} | {expected at 512:.4f} | {score:.3f} | {shift:.2f} | {spread:.2f} |"
        assert line.format(**row) in text


def test_times_of_methods_are_those_of_the_record():
    text, found = (ROOT / "docs" / "methods.md").read_text(), record("method_times")["methods"]
    told = re.search(r"A checkpoint takes, .*?all of them in the record", text, re.S)[0]
    said = re.findall(r"`(\w+)` ([\d.]+)", told)
    assert len(said) > 10
    for name, ratio in said:
        assert float(ratio) == pytest.approx(found[name]["ratio"], rel=0.05), name


def test_what_the_own_method_gets_is_in_the_record():
    entries, text = record("own_method"), " ".join((ROOT / "docs" / "own_method.md").read_text().split())
    line = "| {expected at 512:.4f} | {score:.3f} | {shift:.2f} | {spread:.2f} | {retain:.1%} | {test:.1%} |"
    for entry in entries.values():
        assert f"{entry['n_models']} models; a perfect unlearner gets {entry['null_at_512']:.3f}" in text
        for row in entry["methods"].values():
            assert line.format(**row) in text
    first = entries["competition"]
    ours, winner = (first["methods"][name]["expected at 512"] for name in ("calibrated_restart", "fanchuan"))
    rivals = first["rivals"]
    least, expected = min(rivals["above"].values()), rivals["above, expected at 512"].values()
    board = " ".join((ROOT / "docs" / "leaderboard.md").read_text().split())
    assert f"of {least:.1%} or more for each of {len(expected)}" in board
    assert f"of {min(expected):.0%} to {max(expected):.0%} by what is expected at 512" in board
    assert f"of {first['above, expected at 512']['fanchuan']:.2%}" in board
    clean = (entries["clean labels"]["methods"][name]["expected at 512"] for name in ("calibrated_restart", "fanchuan"))
    page = " ".join((ROOT / "README.md").read_text().split())
    assert f"gets {ours:.4f} of {first['null_at_512']:.3f} where fanchuan gets {winner:.4f}" in page
    assert "; clean: {:.4f} and {:.4f})".format(*clean) in page


def test_what_the_boards_say_of_models_and_the_original_is_in_their_records():
    boards = [record(f"leaderboard_{name}") for name in BOARDS]
    (original,) = (row for row in boards[1]["rows"] if row["method"] == "do nothing")
    text = " ".join((ROOT / "docs" / "leaderboard.md").read_text().split())
    for board in boards:
        assert f"{board['n_models']} models each against {board['n_models']} retrained ones" in text
    assert f"an original with {original['test_accuracy']:.1%} on the test set" in text
    assert f"a gap of {100 * (original['retain_accuracy'] - original['test_accuracy']):.0f} points, 2.6 in" in text
    known = [row for row in boards[1]["rows"] if row["place"] and row["kaggle"] is not None]
    kaggle, here, later = ([row[key] for row in known] for key in ("kaggle", "score", "score_at_512"))
    both = [spearmanr(kaggle, values) for values in (here, later)]
    assert f"Over the {len(known)} methods with a score on Kaggle" in text
    said = "of {:.2f} with the score here and of {:.2f} with what is expected at 512"
    assert said.format(*(rank.statistic for rank in both)) in text
    assert min(rank.pvalue for rank in both) > 0.05  # "neither can be told from none"
    few, many = ({row["method"]: row for row in board["rows"] if row["place"]} for board in boards[1:])
    falls = [few[name]["score"] / many[name]["score"] for name in many]
    moves = [abs(few[name]["score_at_512"] / many[name]["score_at_512"] - 1) for name in many]
    assert f"models are {min(falls):.1f} to {max(falls):.1f} times those with 256" in text
    assert f"differs by at most {max(moves):.0%} between the two" in text


def ranks(found):
    return found["spearman"], *found["interval"]


def test_the_correlation_with_kaggle_is_that_of_the_record():
    settings = [Setting(**setting) for setting in LIKE.values()]
    each, both = [validation_of(setting) for setting in settings], validation_together(settings)
    said, page = (" ".join((ROOT / name).read_text().split()) for name in ("README.md", "docs/validity.md"))
    assert f"correlation of {both.spearman:.2f} [{both.interval[0]:.2f}, {both.interval[1]:.2f}]" in said
    assert f"(apart {each[0].spearman:.2f} and {each[1].spearman:.2f};" in said
    assert f"all {each[0].n_points} submissions" in page
    more = record("validity")["unseen"]["with these"]
    low, high = more["interval"]
    assert (
        f"all {more['n_points']} submissions the correlation is {more['spearman']:.2f} [{low:.2f}, {high:.2f}]" in page
    )
    of_score = ranks(record("validity")["together"]["all"]["score"])
    assert "by its mean of both: {:.2f} [{:.2f}, {:.2f}]".format(*of_score) in page
    clean = record("validity")["clean labels"]
    sweep, methods = clean["fine-tuning"]["expected at 512"], clean["method"]["expected at 512"]
    told = "{:.2f} ({:.2f} to {:.2f}"
    assert f"{clean['n_models']} models each, the correlation is " + told.format(*ranks(sweep)) in page
    assert "clean labels are no help: " + told.format(*ranks(methods)) in page
    score = clean["fine-tuning"]["score"]["spearman"]
    assert f"The score with {clean['n_models']} models sees none of this ({score:.2f})" in page
    assert f"without them {clean['points']['0.2, 512, 3']['shift']:.1f}." in page
    for found, factor, words in ((each[0], 8, "eight"), (both, 6, "six")):
        assert f"about a factor of {words} either way" in page
        forecast = found.forecast(0.001)
        assert round(forecast.value / forecast.low) == factor == round(forecast.high / forecast.value)


def test_the_published_pools_are_those_that_the_docs_name():
    held = {}
    for path in (ROOT / "benchmarks" / "results" / "pools").glob("*.npz"):
        with np.load(path) as file:
            facts = json.loads(str(file["facts"]))
            held[facts["setting"]["source"]] = len(file["seconds"])
            assert path.stem == facts["name"] and "original_model" not in file
    assert held.keys() == {setting["source"] for setting in LIKE.values()}
    said = " ".join((ROOT / "docs" / "score.md").read_text().split())
    first, second = (held[setting["source"]] for setting in LIKE.values())
    assert f"{first} retrained models of `--like competition` and {second} of `--like competition-clean`" in said
