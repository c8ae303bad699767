# %% [markdown]
# # From data to the competition's score
#
# The main job on real images that need no download: scikit-learn's handwritten digits. An original model learns all of
# them, 32 models are retrained without the forget set, two methods make 32 unlearned models each, and the score says
# how well the unlearned can be told from the retrained. For CIFAR-10 change `source` and take more models.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from kit.methods import get_method
from local_eval.assess import assess
from local_eval.audit.lower_bounds import epsilon_lower_bounds
from local_eval.evaluate import evaluate, read_samples
from local_eval.metric import MetricSpec
from local_eval.report.assessment import assessment_lines
from local_eval.report.notes import notes_on
from local_eval.report.table import aligned, table_of
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace
from local_eval.unlearned import fill_unlearned

N_MODELS = 32
setting = Setting(source="digits", forget="random:100", architecture="tinyconv", recipe="fast", epochs=3)
workspace = open_workspace(setting, Path(tempfile.mkdtemp()))
print(
    f"{len(workspace.splits.retain)} retain, {len(workspace.splits.forget)} forget, {len(workspace.splits.test)} test"
)

# %% [markdown]
# Retrained models are paid for once per setting; every method is compared with the same ones.

# %%
fill_retrained(workspace, N_MODELS, progress=False)
METHODS = {"finetune": ["epochs=1"], "random_perturbation": ["beta=0.3", "lr=0.01"]}
pools = {
    name: fill_unlearned(workspace, get_method(name, settings), N_MODELS, progress=False)
    for name, settings in METHODS.items()
}

# %% [markdown]
# ## The table
#
# *Do nothing* submits the original model N times; the *null* compares retrained models with each other. A score means
# something only between the two.

# %%
samples = read_samples(workspace, pools, N_MODELS)
rows = evaluate(samples)
print("\n".join([*aligned(table_of(rows)), "", *notes_on(rows)]))

# %% [markdown]
# ## How sure, and why
#
# Intervals over models and examples, the share of what a perfect unlearner would reach, and what keeps the method from
# it.

# %%
assessments, above = assess(samples)
for assessment in assessments:
    print("\n".join(assessment_lines(assessment)), end="\n\n")

# %% [markdown]
# ## Epsilon of each forgotten example
#
# The score gives an example 2 / 2^n points for the n-th bin of width 0.5 that its epsilon falls in: only the left end
# of this histogram counts.

# %%
COLOURS = {"finetune": "#0072B2", "random_perturbation": "#D55E00", rows[-1].name: "#009E73"}
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
bins = np.arange(0, 8, MetricSpec().bin_width)
shown = [row for row in rows if row.name in COLOURS]
labels = [row.name.split(" (")[0] for row in shown]
epsilons = [np.clip(row.epsilon, 0, 7.2) for row in shown]
axis.hist(epsilons, bins=bins, label=labels, color=[COLOURS[row.name] for row in shown])
axis.set(xlabel="epsilon (7 and more in the last bin)", ylabel="forgotten examples")
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## The example that gives fine-tuning away most
#
# Its confidences under unlearned and retrained models, and the window that tells them apart best.

# %%
bounds = epsilon_lower_bounds(samples.methods["finetune"].confidence, samples.retrained.confidence)
worst = int(np.argmax(bounds.epsilon))
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=[1, 4], layout="constrained")
axes[0].imshow(workspace.splits.forget.images[worst].transpose(1, 2, 0))
axes[0].set_title(f"a {workspace.splits.forget.labels[worst]}")
axes[0].axis("off")
pair = [samples.methods["finetune"].confidence[:, worst], samples.retrained.confidence[:, worst]]
axes[1].hist(pair, bins=20, label=["fine-tuned", "retrained"], color=["#0072B2", "#009E73"])
attack = bounds.attacks[worst]
ends = np.clip([attack.lo, attack.hi], min(map(np.min, pair)), max(map(np.max, pair)))
axes[1].axvspan(*ends, color="0.88", zorder=0, label="best window")
axes[1].set(xlabel="logit-scaled confidence", ylabel="models", title=f"epsilon is at least {bounds.epsilon[worst]:.2f}")
axes[1].legend(frameon=False)
axes[1].spines[["top", "right"]].set_visible(False)
plt.show()
