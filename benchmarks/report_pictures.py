"""The README's pictures of the report: a page on handwritten digits, photographed in a headless browser.

python -m benchmarks.report_pictures [--n-models 64]     writes benchmarks/results/report_{verdict,images}.png

Needs chromium with chromedriver, and selenium (requirements-dev.txt).
"""

import argparse
import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.record import RESULTS
from kit.methods import get_method
from local_eval.report.pages import report_of
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace
from local_eval.unlearned import fill_unlearned

SETTING = Setting(source="digits", forget="random:100", architecture="tinyconv", epochs=3)
PICTURES = {"report_verdict": "verdict", "report_images": "images"}  # file -> section of the page
WIDTH = 1100


def page(n_models: int, root: Path) -> Path:
    """The page of random perturbation, with the starter's fine-tuning beside it."""
    workspace = open_workspace(SETTING, root)
    fill_retrained(workspace, n_models)
    fill_unlearned(workspace, get_method("finetune"), n_models)
    pool = fill_unlearned(workspace, get_method("random_perturbation", ["beta=0.3", "lr=0.01"]), n_models)
    return report_of(workspace, "random_perturbation", pool, n_models, progress=True)[0]


def photograph(path: Path) -> dict[str, Image.Image]:
    """Each section of PICTURES as the browser shows it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for argument in ("headless=new", "no-sandbox", "hide-scrollbars", f"window-size={WIDTH},900"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(path.resolve().as_uri())
        found = {}
        for name, section in PICTURES.items():
            corners = driver.execute_script(
                "const r = document.getElementById(arguments[0]).getBoundingClientRect(); return [r.top, r.bottom]",
                section,
            )
            clip = {"x": 0, "y": corners[0] + 8, "width": WIDTH, "height": corners[1] - corners[0] - 8, "scale": 1}
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            found[name] = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        return found
    finally:
        driver.quit()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report_pictures", description=__doc__.splitlines()[0])
    parser.add_argument("--n-models", type=int, default=64)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as root:
        for name, image in photograph(page(arguments.n_models, Path(root))).items():
            image.quantize(128).save(RESULTS / f"{name}.png", optimize=True)
            print(f"wrote {RESULTS / name}.png, {image.width} x {image.height}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
