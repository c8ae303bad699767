# %% [markdown]
# # A dry run before the upload
#
# Kaggle tells a participant "submission scoring error" and no more, hours later. A dry run executes the same notebook
# here, as if it stood at `/kaggle`, and says what would have happened: a line per check, and the score of what it
# wrote. Any competition notebook can be given to it; this page runs the organisers' starter, the same with two faults,
# and a submission that the kit builds.
#
# The committed outputs come from CIFAR-10. Elsewhere it takes synthetic images, unless `UNLEARNING_SOURCE` names
# others: `cifar10` (downloads it), or `image-folder:PATH`.

# %%
import io
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
from IPython.display import Image, display

from local_eval.assess import assess
from local_eval.dry_run.judge import dry_run, lines_of
from local_eval.dry_run.program import read_program
from local_eval.dry_run.stand_in import stand_in
from local_eval.report import plots
from notebooks.percent import notebook_of
from notebooks.starter import METHOD, changed, write_program
from notebooks.submission import notebook_cells, source_of

SOURCE = os.environ.get("UNLEARNING_SOURCE", "synthetic")
N_MODELS = 8  # instead of 512
folder = Path(tempfile.mkdtemp())


def show(figure):
    """A picture on white paper, whatever the page's theme."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white", dpi=100)
    display(Image(picture.getvalue()))


# %% [markdown]
# ## A stand-in of the hidden data
#
# The competition's input tree, small: 400 images, 40 of them to be forgotten, a ResNet-18 trained on all of them, and
# eight more trained without those 40. They are made once and kept; every program is compared with the same ones.

# %%
data = stand_in(
    SOURCE,
    Path(os.environ.get("UNLEARNING_WORK_DIR", folder)),
    n_models=N_MODELS,
    progress=False,
)
print(*sorted(path.name for path in data.tree.iterdir()))
print(*(f"{split}: {size} images" for split, size in data.sizes.items()), sep="\n")

# %% [markdown]
# ## The starter
#
# Its loop says 512, its code insists on CUDA, it writes to `/kaggle/tmp` and calls `zip`. Only 512 is brought down,
# where it means the number of checkpoints (the lines are named); CUDA is answered by the CPU.


# %%
def run(path):
    """The dry run of a program, its verdict printed."""
    result = dry_run(read_program(path), data, N_MODELS, timeout_s=3600, progress=False)
    print("\n".join(lines_of(result, brief=True)))
    return result


results = {"starter": run(write_program(folder / "starter.ipynb"))}

# %% [markdown]
# ## The same with two faults
#
# A seed fixed inside `unlearning` and a file forgotten in `/kaggle/tmp`: each cost participants a day. The remedy
# stands in the same line.

# %%
FAULTS = (
    (METHOD.splitlines()[1], "    torch.manual_seed(42)\n" + METHOD.splitlines()[1]),
    ("    for i in range(512)", '    open("/kaggle/tmp/notes.txt", "w").close()\n    for i in range(512)'),
    ("!= 512", "< 512"),
)
results["a fixed seed"] = run(write_program(folder / "faults.ipynb", changed(*FAULTS)))

# %% [markdown]
# What the fixed seed does, on one forgotten image: a dot is one model's confidence in its label. Retrained models
# scatter, because each draws its own batches; all eight runs of the faulty notebook are one model, and whoever sees
# it knows that it was not retrained.


# %%
def confidence(result):
    """(n_models, n_examples) of what a program wrote."""
    (method,) = result.samples.methods.values()
    return method.confidence


retrained = results["starter"].samples.retrained.confidence
example = int(np.argmax(confidence(results["starter"]).std(axis=0)))
samples = {name: confidence(result)[:, example] for name, result in results.items()}
samples["retrained"] = retrained[:, example]
roles = {name: "retrained" if name == "retrained" else "unlearned" for name in samples}
show(plots.strips(samples, roles, {name: f"spread {values.std():.2f}" for name, values in samples.items()}))

# %% [markdown]
# ## A submission of the kit
#
# `python -m notebooks.build --method random_perturbation` writes it as a file; here it is made and run.

# %%
cells = notebook_cells(source_of("random_perturbation"))
path = folder / "random_perturbation.ipynb"
path.write_text(nbformat.writes(notebook_of(cells)))
results["random_perturbation"] = run(path)

# %% [markdown]
# ## What each would score
#
# With intervals of 95%. The shaded span ends at the null: retrained models against each other, the most that there is
# to reach. With 8 models and 40 examples the intervals are wide; 64 models and more tell methods apart.

# %%
marks, null = [], None
for name, result in results.items():
    (assessment, *_), _ = assess(result.samples)
    form = assessment.forms["grid"]
    marks.append(plots.Mark(name, form.score.value, form.score.low, form.score.high, "unlearned"))
    null = form.null or null
marks.append(plots.Mark("null: retrained against retrained", null.value, null.low, null.high, "retrained"))
show(plots.ruler(marks, end=null.value))

# %% [markdown]
# ## Does it unlearn, and does the rest stay?

# %%
result = results["random_perturbation"]
(method,) = result.samples.methods.values()
original = {part: float(values[0]) for part, values in result.samples.original.accuracy.items()}
show(plots.accuracies(method.accuracy, result.samples.retrained.accuracy, original))

# %% [markdown]
# ## Will 512 fit into 8 hours?
#
# The projection counts how many images a checkpoint passes through the net, brings that to the size of the hidden data
# and takes the speed of the card. Data loading is in it; a slower `DataLoader` than the starter's is not.

# %%
hours = {
    f"{name}, {card}": seconds / 3600
    for name, result in results.items()
    for card, seconds in result.projection.on.items()
}
figure, axis = plt.subplots(figsize=(6.4, 0.5 + 0.32 * len(hours)), layout="constrained")
axis.barh(list(hours), list(hours.values()), color=plots.colour("unlearned"), height=0.6)
axis.axvline(8, color=plots.colour("forget"), linestyle="--")
axis.annotate("limit", (8, 0), (4, 0), textcoords="offset points", va="center", color=plots.colour("forget"))
axis.invert_yaxis()
axis.set(xlabel="hours for 512 checkpoints", xlim=(0, 9))
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The same at the terminal, for a notebook of your own:
#
# ```
# python -m local_eval dry-run mine.ipynb --data cifar10
# ```
