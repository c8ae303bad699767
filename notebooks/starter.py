"""The organisers' starter notebook in the words of the competition's contract: what a participant begins with.

Its method is one epoch of fine-tuning. `python -m notebooks.starter FILE.ipynb|FILE.py` writes it down, to change it or
to try a dry run on.
"""

import argparse
import sys
from pathlib import Path

import nbformat

from kit.errors import InputError
from kit.tools.cli import run
from notebooks.percent import notebook_of, script_of

IMPORTS = """\
import os
import subprocess

import pandas as pd
from torchvision.io import read_image
import torch
import torch.nn as nn
from torch import optim
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE != "cuda":
    raise RuntimeError("Make sure you have added an accelerator to your notebook; the submission will fail otherwise!")
ROOT = "/kaggle/input/neurips-2023-machine-unlearning/"
"""
DATA = """\
def load_example(row):
    return {
        "image": read_image(row["image_path"]),
        "image_id": row["image_id"],
        "age_group": row["age_group"],
        "age": row["age"],
        "person_id": row["person_id"],
    }


class HiddenDataset(Dataset):
    def __init__(self, split="train"):
        super().__init__()
        self.examples = []
        df = pd.read_csv(f"{ROOT}{split}.csv")
        df["image_path"] = df["image_id"].apply(
            lambda x: os.path.join(ROOT, "images", x.split("-")[0], x.split("-")[1] + ".png")
        )
        df = df.sort_values(by="image_path")
        df.apply(lambda row: self.examples.append(load_example(row)), axis=1)
        if len(self.examples) == 0:
            raise ValueError("No examples.")

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, idx):
        example = self.examples[idx]
        example["image"] = example["image"].to(torch.float32)
        return example


def get_dataset(batch_size):
    splits = [HiddenDataset(split=split) for split in ("retain", "forget", "validation")]
    return [DataLoader(split, batch_size=batch_size, shuffle=True) for split in splits]
"""
METHOD = """\
def unlearning(net, retain_loader, forget_loader, val_loader):
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1)
    net.train()
    for sample in retain_loader:
        inputs, targets = sample["image"].to(DEVICE), sample["age_group"].to(DEVICE)
        optimizer.zero_grad()
        loss = criterion(net(inputs), targets)
        loss.backward()
        optimizer.step()
    scheduler.step()
    net.eval()
"""
RUN = """\
if os.path.exists("/kaggle/input/neurips-2023-machine-unlearning/empty.txt"):
    subprocess.run("touch submission.zip", shell=True)
else:
    os.makedirs("/kaggle/tmp", exist_ok=True)
    retain_loader, forget_loader, validation_loader = get_dataset(64)
    net = resnet18(weights=None, num_classes=10)
    net.to(DEVICE)
    for i in range(512):
        net.load_state_dict(torch.load("/kaggle/input/neurips-2023-machine-unlearning/original_model.pth"))
        unlearning(net, retain_loader, forget_loader, validation_loader)
        state = net.state_dict()
        torch.save(state, f"/kaggle/tmp/unlearned_checkpoint_{i}.pth")

    unlearned_ckpts = os.listdir("/kaggle/tmp")
    if len(unlearned_ckpts) != 512:
        raise RuntimeError("Expected exactly 512 checkpoints. The submission will throw an exception otherwise.")
    subprocess.run("zip submission.zip /kaggle/tmp/*.pth", shell=True)
"""
STARTER = (IMPORTS, DATA, METHOD, RUN)


def changed(*changes: tuple[str, str], more: str = "") -> tuple[str, ...]:
    """The starter's cells with texts replaced, each of which must be there; `more` is a last cell."""
    cells = STARTER
    for old, new in changes:
        if not any(old in cell for cell in cells):
            raise InputError(f"the starter has no {old!r}")
        cells = tuple(cell.replace(old, new) for cell in cells)
    return (*cells, more) if more else cells


def write_program(path: Path, cells: tuple[str, ...] = STARTER) -> Path:
    """Cells of code as a notebook or, with the suffix .py, as a script; `path` is returned."""
    pairs = [("markdown", "# A competition notebook"), *(("code", cell) for cell in cells)]
    if path.suffix not in (".py", ".ipynb"):
        raise InputError(f"{path}: is neither .ipynb nor .py: give the name of a notebook or a script")
    text = script_of(pairs) if path.suffix == ".py" else nbformat.writes(notebook_of(pairs)) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}): choose another place") from error
    return path


def _command(args: argparse.Namespace) -> int:
    print(f"wrote {write_program(args.path)}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m notebooks.starter", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a notebook (.ipynb) or a script (.py)")
    parser.set_defaults(command=_command)
    sys.exit(run(parser))
