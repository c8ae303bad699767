"""How long a browser takes to open the page of a method on many forget examples, and how large that page is.

python -m benchmarks.bench_page [--examples 1000 10000] [--models 16]

Writes results/page.json. The models are drawn, not trained: logits of a perfect and of a too narrow unlearner. The page
is opened in a headless chromium (chromedriver and selenium are needed), five times, until it has been painted.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import record, rounded
from kit.methods import get_method
from local_eval.commands.parser import build_parser
from local_eval.pool import ModelPool
from local_eval.retrained import fill_retrained, retrained_pool
from local_eval.setting import Setting, Workspace, open_workspace
from local_eval.unlearned import fill_unlearned, unlearned_pool

PAINTED = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--models", type=int, default=16)
    options = parser.parse_args(argv[1:])
    began, rows = time.perf_counter(), []
    for n_examples in options.examples:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            page = page_of(drawn(n_examples, options.models, Path(folder)))
            row = {"n_examples": n_examples, "n_models": options.models, "written_s": time.perf_counter() - start}
            rows.append(row | {"kb": page.stat().st_size / 1000, **opened(page)})
            print(rows[-1], flush=True)
    results = {"pages": rows, "seconds": time.perf_counter() - began}
    print(record("page", rounded(results), argv))


def drawn(n_examples: int, n_models: int, folder: Path) -> ModelPool:
    """A pool of drawn models beside a retrained one, on a setting whose original was trained for a moment."""
    setting = Setting(
        source="synthetic",
        n_train=2 * n_examples + 200,
        forget=f"random:{n_examples}",
        architecture="tinyconv",
        epochs=0.05,
        n_retain_sample=500,
    )
    workspace = open_workspace(setting, folder)
    fill_retrained(workspace, 0, devices=["cpu"], progress=False)
    pool = fill_unlearned(workspace, get_method("finetune"), 0, devices=["cpu"], progress=False)
    fill(workspace, {retrained_pool(workspace): 0.9, pool: 0.75}, n_models)
    return unlearned_pool(workspace, get_method("finetune"))


def fill(workspace: Workspace, pools: dict[ModelPool, float], n_models: int) -> None:
    """Logits around those of one model, so far apart."""
    rng, mean = np.random.default_rng(0), {}
    for name, part in workspace.evaluated().items():
        labels = np.asarray(part.labels)
        mean[name] = rng.normal(size=(len(labels), 10)) + 3 * np.eye(10)[labels]
    for pool, spread in pools.items():
        for index in range(n_models):
            logits = {name: x + spread * rng.normal(size=x.shape) for name, x in mean.items()}
            pool.add(index, {name: x.astype(np.float32) for name, x in logits.items()}, 1.0)


def page_of(pool: ModelPool) -> Path:
    args = build_parser("").parse_args(["report", str(pool.folder), "--quiet", "--no-saliency", "--device", "cpu"])
    args.argv, args.own_process, args.answers = [], False, []
    args.command(args)
    return pool.folder / "report.html"


def opened(page: Path, times: int = 5) -> dict[str, float]:
    """Seconds until the page has been painted: the first time, and the median; its elements."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        seconds = []
        for _ in range(times):
            driver.get("about:blank")
            start = time.perf_counter()
            driver.get(page.resolve().as_uri())
            driver.execute_async_script(PAINTED)
            seconds.append(time.perf_counter() - start)
        elements = driver.execute_script("return document.querySelectorAll('*').length")
    finally:
        driver.quit()
    return {"first_s": seconds[0], "median_s": float(np.median(seconds)), "elements": elements}


if __name__ == "__main__":
    main(sys.argv)
