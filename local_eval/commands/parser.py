"""The words of every command: names, options, help. What a command does lies in the file beside this of its name.

Nothing here imports torch or numpy, so that --help is there at once. The names that stand here a second time are held
equal to those of their tables by a test.
"""

import argparse
from pathlib import Path

from kit import __version__
from kit.tools.cli import Parser, described, later, positive_int

LIKE = ("competition", "competition-clean")
SOURCES = (
    "cifar10",
    "gtsrb[:super|:ten]",
    "image-folder:PATH",
    "arrays:FILE.npz",
    "digits",
    "synthetic",
    "file.py:function",
)
ARCHITECTURES = ("resnet18", "resnet18_narrow", "resnet20", "smallconv", "tinyconv")
RECIPES = ("competition", "competition-unweighted", "competition-narrow", "fast", "sgd")
POLICIES = (
    "random:500",
    "random:0.02",
    "class:3",
    "class:NAME",
    "indices:FILE.npy",
    "group:0.02",
    "competition",
    "given",
)
FORMS = ("grid", "exact")
BINS = ("code", "report")
CRITERIA = ("accuracy", "score", "similarity")
ISOLATION = ("auto", "namespaces", "hooks")
SETTING = {"forget": "random:500", "architecture": "smallconv", "recipe": "fast", "n_retain_sample": 2000}
N_MODELS = 64
STAND_IN = {"data": "synthetic", "n_train": 400, "forget": "random:40", "epochs": 4.0}  # of a dry run
_DATA = "--source cifar10 --n-train 10000"  # of the examples
_RUN = f"{_DATA} --method finetune --n-models 32"


def build_parser(description: str) -> argparse.ArgumentParser:
    parser = Parser(prog="python -m local_eval", description=description)
    parser.add_argument("--version", action="version", version=f"local_eval {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, about: str, example: str, function: str = "") -> argparse.ArgumentParser:
        """function: FILE.FUNCTION where they are not both called like the command."""
        sub = described(commands, name, about, example)
        file, _, called = (function or f"{name}.{name}").partition(".")
        sub.set_defaults(command=later(f"local_eval.commands.{file}", called))
        return sub

    sub = command("run", "everything: original, retrained and unlearned models, score, report", _RUN)
    setting_options(sub)
    method_options(sub)
    limit_option(sub)
    score_options(sub)
    n_models_option(sub)
    fresh_option(sub)
    label_option(sub)
    open_option(sub)
    sub.add_argument("--no-page", action="store_true", help="no report.html, whose intervals take time")

    about = "one method at several values: --set alpha=0.1,1,10; several such options give the grid"
    sub = command("sweep", about, f"{_DATA} --method ssd --set alpha=1,2,5 --n-models 4")
    setting_options(sub)
    method_options(sub)
    score_options(sub)
    n_models_option(sub, default=8)
    sub.add_argument(
        "--best-by", choices=CRITERIA, default="accuracy", help="what the best point is chosen by (accuracy)"
    )

    about = "search a method's hyper-parameters, then check the best on another forget set"
    sub = command("tune", about, f"finetune {_DATA} --limit 2h")
    sub.set_defaults(interrupted="what is measured is kept, the same command goes on")
    setting_options(sub)
    sub.add_argument("method", help="a name, or file.py[:function]")
    hyper_options(sub)
    sub.add_argument(
        "--range",
        action="append",
        default=[],
        metavar="NAME=LOW:HIGH",
        help="or NAME=a,b,c: what is searched (RANGES beside the function)",
    )
    n_models_option(sub, default=32)
    sub.add_argument("--limit", help="time of the search, of all calls together, such as 2h (none)")
    sub.add_argument("--trials", type=positive_int, help="at most so many (27 without --limit)")
    sub.add_argument(
        "--fits", metavar="8h", help="only what makes 512 checkpoints on a T4 with the hidden data in that time (any)"
    )
    sub.add_argument("--search-seed", type=int, default=0, help="of the draw of trials (0)")
    sub.add_argument("--check-models", type=int, default=8, help="models on the other forget set, 0 for no check (8)")

    sub = command("train", "train the original model", _DATA, "steps.train")
    setting_options(sub)
    about = "train N models without the forget set (and the original)"
    sub = command("retrain", about, f"{_DATA} --n-models 64", "steps.retrain")
    setting_options(sub)
    n_models_option(sub)
    shard_option(sub)
    sub = command("unlearn", "make N unlearned models of a method", _RUN, "steps.unlearn")
    setting_options(sub)
    method_options(sub)
    limit_option(sub)
    n_models_option(sub)
    fresh_option(sub)
    label_option(sub)
    shard_option(sub)

    about = "export: the retrained models of a setting to one small file; import: back, beside data of one's own"
    sub = command("pool", about, "export retrained.npz --setting runs/SETTING")
    sub.add_argument("direction", choices=("export", "import"), help="to a file, or from one")
    sub.add_argument("file", type=Path, help="the file to write or to read, .npz")
    sub.add_argument("--setting", type=Path, help="export: the folder of the setting (must be given)")
    sub.add_argument("--n-models", type=positive_int, help="export: so many (all)")
    what = "export: no weights; whoever imports the file trains an original (the original goes along)"
    sub.add_argument("--without-original", action="store_true", help=what)
    data_options(sub)
    sub.add_argument("--architecture", help="import: file.py:function of an own net (where the file says)")
    sub.add_argument(
        "--work-dir", type=Path, default=Path("runs"), help="import: where models and pools are kept (runs)"
    )

    about = "write the data and a trained original model as the competition's input tree"
    sub = command("tree", about, "--source digits --architecture resnet18 --recipe sgd --epochs 1 --out tree")
    setting_options(sub)
    sub.add_argument("--out", type=Path, required=True, help="folder to write, new or such a tree")

    about = "score pools, checkpoints of anyone's, or logits and confidences from anywhere"
    sub = command("score", about, "unlearned/ --retrained retrained/ --architecture net.py:small --source digits")
    sub.set_defaults(command=score)
    pool_options(sub, "*")
    sub.add_argument("--brief", action="store_true", help="the table only: no intervals, null, diagnosis")
    label_option(sub)
    array_options(sub)
    about = "compare pools or archives of one setting, two or more"
    sub = command("compare", about, "runs/SETTING", "score.compare")
    sub.set_defaults(label=None)
    pool_options(sub, "*")
    sub.add_argument("--brief", action="store_true", help="the table only: no intervals, null, diagnosis")

    about = "HTML pages: one for each pool or archive; of several, a comparison too"
    sub = command("report", about, "runs/SETTING --out comparison.html")
    pool_options(sub, "*")
    array_options(sub)
    sub.add_argument("--out", type=Path, help="where the page, or the comparison, goes (beside the pools)")
    open_option(sub)
    sub.add_argument("--no-saliency", action="store_true", help="no activation maps")

    about = "many methods on one setting, made where they are missing: a table, a page that sorts, CSV"
    sub = command("leaderboard", about, f"{_DATA} --methods 'finetune, ssd alpha=5' --n-models 32")
    setting_options(sub)
    many = "NAME,NAME, settings behind a name: 'ssd, ssd alpha=5, mixture(a=1, b=2)' (all that come with the kit)"
    sub.add_argument("--methods", metavar="LIST", help=many)
    sub.add_argument("--seed", type=int, default=0, help="seed of the unlearning runs (0)")
    n_models_option(sub)
    score_options(sub)
    sub.add_argument("--out", type=Path, metavar="FILE.html", help="where the page goes (the setting's folder)")
    open_option(sub)

    about = "a forecast of a method's score on Kaggle, from all settings of --like together"
    sub = command("forecast", about, "--method fanchuan --n-models 8 --data-root FOLDER")
    sub.set_defaults(setting=None, size=None, engine="processes", limit=None)
    method_options(sub)
    n_models_option(sub, default=8)
    data_options(sub)
    sub.add_argument("--work-dir", type=Path, default=Path("runs"), help="where models and pools are kept (runs)")
    device_options(sub)
    fresh_option(sub)
    label_option(sub)

    about = "the settings below --work-dir, and their pools: method, models, score, date"
    sub = command("list", about, "--work-dir runs", "listing.list_pools")
    sub.add_argument("--work-dir", type=Path, default=Path("runs"), help="where models and pools are kept (runs)")
    sub.add_argument("--csv", type=Path, metavar="FILE.csv", help="write the rows of the table there too (nowhere)")

    about = "execute a notebook or script as if on Kaggle, check it, score it"
    sub = command("dry-run", about, "mine/finetune.ipynb --n-models 8", "dry_run.execute")
    dry_run_options(sub)
    return parser


def score(args: argparse.Namespace) -> int:
    """Arrays are scored without torch, whose import alone takes seconds."""
    if args.confidences or args.logits:
        return later("local_eval.commands.arrays", "score_arrays")(args)
    return later("local_eval.commands.score", "score")(args)


def setting_options(sub: argparse.ArgumentParser, *, trained: bool = True) -> None:
    """trained: with the options of how models are trained."""
    group = sub.add_argument_group("setting")
    group.add_argument(
        "--setting",
        type=Path,
        help="the folder of an earlier run, instead of the options below (a new setting of those)",
    )
    if trained:
        group.add_argument(
            "--like", choices=LIKE, help="a setting that stands for Kaggle's; options below change it (none)"
        )
    group.add_argument("--source", help=f"{', '.join(SOURCES)}; :noise=0.04 behind it flips labels (synthetic)")
    group.add_argument(
        "--size", type=positive_int, help="scale the images of an image-folder to SIZE x SIZE pixels (as they are)"
    )
    data_options(group)
    group.add_argument("--n-train", type=positive_int, help="training images, a stratified sample (all)")
    forget = f"forget policy: {', '.join(POLICIES)}, file.py:function (random:0.05, {SETTING['forget']} at most)"
    group.add_argument("--forget", help=forget)
    group.add_argument("--data-seed", type=int, help="of the forget set and the sample (0)")
    nets = f"{', '.join(ARCHITECTURES)}, or file.py:function"
    group.add_argument("--architecture", help=f"{nets} ({SETTING['architecture']})")
    if trained:
        group.add_argument("--recipe", help=f"{', '.join(RECIPES)}, or file.py:function ({SETTING['recipe']})")
        group.add_argument("--epochs", type=float, help="training epochs (the recipe's)")
        group.add_argument("--lr", type=float, help="learning rate of the training, at its highest (the recipe's)")
        group.add_argument("--batch-size", type=positive_int, help="images a step of the training (the recipe's)")
        group.add_argument("--train-seed", type=int, help="of the original and the retrained models (0)")
    most = SETTING["n_retain_sample"]
    group.add_argument("--n-retain-sample", type=positive_int, help=f"of them models are shown ({most})")
    if trained:
        group.add_argument("--passes", type=positive_int, help="over the data in an epoch of a method (1)")
        group.add_argument("--quick", action="store_true", help="10,000 training images and tinyconv")
    group.add_argument("--work-dir", type=Path, default=Path("runs"), help="where models and pools are kept (runs)")
    device_options(sub).add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="what makes models: processes, or a Ray cluster (processes)",
    )


def data_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--data-root", type=Path, help="where CIFAR-10 or GTSRB is, or is downloaded to (the user's cache folder)"
    )
    group.add_argument("--cache-dir", type=Path, help="where decoded images are kept (the user's cache folder)")


def device_options(sub: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = sub.add_argument_group("where models are made")
    group.add_argument(
        "--device", default="auto", help="cpu, cuda (all GPUs), cuda:1 ... (auto: every GPU, else the CPU)"
    )
    what = "processes a device (one a core; on a GPU the fastest number)"
    group.add_argument("--slots", type=positive_int, help=what)
    return group


def method_options(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("method")
    group.add_argument(
        "--method", default="finetune", help="a name, file.py[:function], 'mixture(NAME=3, NAME=5)' (finetune)"
    )
    hyper_options(group)


def hyper_options(sub: argparse._ActionsContainer) -> None:
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter (the method's own)"
    )
    sub.add_argument("--seed", type=int, default=0, help="seed of the unlearning runs (0)")


def limit_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--limit", help="time limit of the unlearning, such as 90m (none)")


def n_models_option(sub: argparse.ArgumentParser, default: int = N_MODELS) -> None:
    sub.add_argument("--n-models", type=int, default=default, help=f"retrained and unlearned models ({default})")


def fresh_option(sub: argparse.ArgumentParser) -> None:
    what = "make the unlearned models anew, even where there are some (those of an earlier run are reused)"
    sub.add_argument("--fresh", action="store_true", help=what)


def label_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--label", metavar="TEXT", help="what `list` calls the models (the label that they have, if any)")


def open_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--open", action="store_true", help="show the page in a browser at the end")


def shard_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--shard", metavar="K/N", help="the K-th of N parts of the models: others make theirs elsewhere (all)"
    )


def score_options(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("score")
    group.add_argument("--attacks", choices=FORMS, default="grid", help="exact: the supremum (grid: as released)")
    group.add_argument("--bins", choices=BINS, default="code", help="report: 13 bins at N = 512 (code: 14)")
    group.add_argument("--delta", type=float, default=1e-5, help="of epsilon (1e-5)")
    group.add_argument("--cap", type=float, default=50.0, help="the largest epsilon (50)")
    group.add_argument("--csv", type=Path, metavar="FILE.csv", help="write the rows of the table there too (nowhere)")


def pool_options(sub: argparse.ArgumentParser, nargs: str) -> None:
    what = "pools, a setting's folder (all its pools), or checkpoints: an archive, a folder, files, 'a pattern'"
    sub.add_argument("pools", nargs=nargs, type=Path, help=what)
    more = "retrained models that came as files: the setting's options below then say data and net (the setting's)"
    sub.add_argument("--retrained", nargs="+", type=Path, metavar="FILES", help=more)
    sub.add_argument("--original", type=Path, metavar="FILE", help="the original model that came with them (unknown)")
    sub.add_argument("--n-models", type=int, help="of each pool (as many as all have without a gap)")
    setting_options(sub, trained=False)
    score_options(sub)


def array_options(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("arrays from elsewhere, instead of pools")
    named = "one .npz (unlearned, retrained, labels) or two .npy: (n_models, n_examples, n_classes) (pools)"
    group.add_argument("--logits", nargs="+", type=Path, metavar="FILE", help=named)
    group.add_argument("--labels", type=Path, metavar="FILE.npy", help="of the forget set, (n_examples,)")
    held = "unlearned_confidence and retrained_confidence, (n_models, n_examples): log-odds of the label (pools)"
    group.add_argument("--confidences", type=Path, metavar="FILE.npz", help=held)


def dry_run_options(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(interrupted="the program is ended, models trained for its score are kept")
    sub.add_argument("program", type=Path, help="a notebook (.ipynb) or a script (.py)")
    sub.add_argument("--data", help=f"cifar10, image-folder:PATH, or an input tree ({STAND_IN['data']})")
    sub.add_argument(
        "--setting", type=Path, help="the folder of an earlier run with resnet18, instead of --data (none)"
    )
    sub.add_argument("--n-models", type=positive_int, default=8, help="checkpoints instead of 512 (8)")
    sub.add_argument("--full", action="store_true", help="all 512")
    attached = (
        "data attached to the notebook, which finds FOLDER as /kaggle/input/NAME; may be given several times (none)"
    )
    sub.add_argument("--input", action="append", default=[], metavar="NAME=FOLDER", help=attached)
    install = "install what Kaggle's image has, the program imports and this environment lacks"
    sub.add_argument("--install-kaggle-packages", action="store_true", help=install)
    sub.add_argument("--timeout", default="30m", help="time after which the program is ended (30m)")
    sub.add_argument(
        "--isolation", choices=ISOLATION, default="auto", help="how /kaggle comes about (auto: what works)"
    )
    sub.add_argument("--no-score", action="store_true", help="the verdict only: no retrained models")
    sub.add_argument("--brief", action="store_true", help="the table of the score only: no intervals")
    sub.add_argument("--keep", type=Path, metavar="FILE.ipynb", help="write the executed notebook there (nowhere)")
    _, n_train, forget, epochs = STAND_IN.values()
    sub.add_argument("--n-train", type=positive_int, help=f"images of the stand-in ({n_train})")
    sub.add_argument("--forget", help=f"forget policy of the stand-in ({forget})")
    sub.add_argument("--epochs", type=float, help=f"training epochs of the stand-in ({epochs:g})")
    data_options(sub)
    sub.add_argument("--work-dir", type=Path, default=Path("runs"), help="where stand-in and models are kept (runs)")
    device_options(sub)
