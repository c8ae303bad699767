"""Packages that Kaggle's Python image has and a laptop may lack: import name -> name for pip, "" where it is the same.

From the image's own list (github.com/Kaggle/docker-python), those that notebooks of this competition's kind import.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec

from kit.errors import InputError
from local_eval.dry_run.program import Program

PACKAGES = {
    **dict.fromkeys(
        (
            *("requests", "pandas", "scipy", "seaborn", "matplotlib", "plotly", "bokeh", "altair", "networkx", "sympy"),
            *("timm", "wandb", "transformers", "datasets", "tokenizers", "accelerate", "peft", "evaluate", "kaggle"),
            *("tensorflow", "keras", "jax", "flax", "optax", "lightgbm", "xgboost", "catboost", "optuna", "hyperopt"),
            *("albumentations", "imgaug", "kornia", "torchmetrics", "torchinfo", "torchsummary", "fastai", "fastcore"),
            *("torchaudio", "einops", "h5py", "joblib", "numba", "psutil", "pyarrow", "polars", "dask", "cloudpickle"),
            *("tensorboard", "tensorboardX", "tqdm", "rich", "click", "nltk", "spacy", "gensim", "shap", "lime"),
            *("statsmodels", "umap", "hdbscan", "imageio", "tifffile", "cupy", "safetensors", "ipywidgets", "colorama"),
        ),
        "",
    ),
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "bs4": "beautifulsoup4",
    "umap": "umap-learn",
    "pytorch_lightning": "pytorch-lightning",
    "lightning": "lightning",
    "imblearn": "imbalanced-learn",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "google": "google-cloud-storage",
    "IPython": "ipython",
}


def pip_install(names: Iterable[str]) -> str:
    """The command that installs packages by the names that they are imported by."""
    return f"python -m pip install {' '.join(PACKAGES[name] or name for name in names)}"


def missing_packages(program: Program) -> list[str]:
    """Modules that a program imports, Kaggle's image has and this environment has not, by the names of their import."""
    found: set[str] = set()
    for code in program.codes:
        tree = code.tree()
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return sorted(name for name in found & set(PACKAGES) if find_spec(name) is None)


def install(names: Iterable[str]) -> None:
    """Install them into this environment; InputError where pip does not."""
    command = pip_install(names)
    print(f"installing what Kaggle's image has and this machine has not: {command}", file=sys.stderr)
    done = subprocess.run([sys.executable, *command.split()[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "pip failed").splitlines()[-1]
        raise InputError(f"{command}: {reason}: install it by hand, or leave out --install-kaggle-packages")
