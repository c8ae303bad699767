"""Packages that Kaggle's Python image has and a laptop may lack: import name -> name for pip, "" where it is the same.

From the image's own list (github.com/Kaggle/docker-python), those that notebooks of this competition's kind import.
"""

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
