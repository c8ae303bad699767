# %% [markdown]
# # 512 checkpoints in 8 hours
#
# Submissions died because a loop of 15 epochs cannot fit, without a log that says so. The kit measures a checkpoint
# before the first one is made, plans as many steps as the limit holds, and watches whether the machine keeps up. This
# page shows that on a small scale: handwritten digits, a small convolutional net, 32 checkpoints, seconds instead of
# hours.

# %%
import math
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from kit.budget import TimeBudget
from kit.competition import ExampleDataset, TensorLoader, make_loaders
from kit.emit import emit
from kit.errors import InputError
from kit.ledger import FILE_NAME, Ledger
from kit.methods import get_method
from kit.plan import planned_steps
from kit.tools.profile import profile
from kit.training import fine_tune
from local_eval.report.plots import colour
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace

N_CHECKPOINTS = 32
folder = Path(tempfile.mkdtemp())
setting = Setting(source="digits", forget="random:100", architecture="tinyconv", recipe="fast", epochs=3)
workspace = open_workspace(setting, folder)
fill_retrained(workspace, 0, progress=False)  # the original model alone
model, splits = workspace.original(), workspace.splits
parts = (splits.retain, splits.forget, splits.validation)
datasets = [ExampleDataset(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for part in parts]
loaders = make_loaders(*datasets, loader=TensorLoader)
method = get_method("finetune", ["epochs=2"])

# %% [markdown]
# ## Where the time of a checkpoint goes
#
# `python -m kit profile` at the terminal. Weights are copied, the method works, the result is packed, written, and read
# back for the check at the end.

# %%
found = profile(method, model, loaders, n_measured=4, dtype=torch.float16, progress=False)
print("\n".join(found.lines()))

# %%
bars = found.bars()
figure, axis = plt.subplots(figsize=(7, 0.6 + 0.24 * len(bars)), layout="constrained")
shades = [colour("quiet") if name.startswith(" ") else colour("unlearned") for name, _ in bars]
axis.barh(range(len(bars)), [seconds for _, seconds in bars], color=shades, height=0.7)
axis.set_yticks(range(len(bars)), [name if len(name) < 60 else name[:57] + "..." for name, _ in bars], fontsize=9)
axis.invert_yaxis()
axis.set(xlabel="seconds of one checkpoint; grey: of the functions in it")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Limits
#
# Without a limit every checkpoint takes the steps that the method wants. With 70% and 40% of that time the plan is
# fewer steps for all of them alike: a schedule that ends with its last step, not one that is cut off.


# %%
def run(name, limit_s=math.inf, method=method, n_checkpoints=N_CHECKPOINTS):
    """Emit under a limit; the run's ledger."""
    out = folder / name
    budget = TimeBudget(limit_s)
    result = emit(method, model, loaders, out=out, n_checkpoints=n_checkpoints, budget=budget, progress=False)
    assert result.faults == []
    print(f"{name}: {result.summary(limit_s)}")
    return Ledger(out / FILE_NAME)


start = time.perf_counter()
ledgers = {"no limit": run("no limit")}
whole_s = time.perf_counter() - start
limits = {"no limit": math.inf, **{f"{share:.0%} of it": share * whole_s for share in (0.7, 0.4)}}
ledgers.update({name: run(name, limit_s) for name, limit_s in limits.items() if limit_s < math.inf})

# %%
SHADES = ("#009e73", "#0072b2", "#8b2fe6")


def draw(axis, ledger, shade, label, limit_s=math.inf):
    """Checkpoints done against seconds of computing, and the limit."""
    seconds = np.cumsum([line["seconds"] for line in ledger.of("checkpoint")])
    axis.plot(np.r_[0, seconds], np.arange(len(seconds) + 1), color=shade, linewidth=2.2, label=label)
    if limit_s < math.inf:
        axis.axvline(limit_s, color=shade, linestyle="--", linewidth=1.2)


figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for (name, ledger), shade in zip(ledgers.items(), SHADES, strict=True):
    plans = [line["steps"] for line in ledger.of("plan")]
    steps = f", {plans[-1]} steps each" if plans else ""
    draw(axis, ledger, shade, name + steps, limits[name])
axis.set(xlabel="seconds of computing (dashed: the limit)", ylabel="checkpoints", xlim=(0, None), ylim=(0, None))
axis.legend(frameon=False)
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## A machine that becomes slower
#
# After eight checkpoints each step of this method takes twice its time, as on a card that gets warm or is shared. The
# plan is lowered, the limit holds; what was made before stays.

# %%
made = []


def slowing(net, retain_loader, forget_loader, val_loader, *, seed, plan=None, epochs=2.0):
    """Fine-tuning that takes twice its time from the ninth checkpoint on."""
    torch.manual_seed(seed)
    n_steps = planned_steps(plan, epochs * len(retain_loader))
    start = time.perf_counter()
    fine_tune(net, retain_loader, n_steps, lr=0.001)
    made.append(n_steps)
    if len(made) > 8 + 4:  # three or four came before the first checkpoint, to measure
        time.sleep(time.perf_counter() - start)


limit_s = 1.2 * whole_s  # enough for a machine that keeps its speed
ledger = run("slowing", limit_s, slowing)
for line in ledger.of("plan"):
    print(f"{line['steps']} steps per checkpoint: {line.get('lowered', 'planned from measured speed')}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=[3, 2], layout="constrained")
draw(axes[0], ledger, SHADES[2], "", limit_s)
axes[0].set(xlabel="seconds of computing (dashed: the limit)", ylabel="checkpoints", xlim=(0, 1.05 * limit_s))
axes[1].bar(range(N_CHECKPOINTS), [line["seconds"] for line in ledger.of("checkpoint")], color=colour("unlearned"))
axes[1].set(xlabel="checkpoint", ylabel="seconds")
for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What cannot fit is said in the first minute

# %%
plan = ledger.first("plan")
try:
    run("hopeless", 0.9 * 512 * (plan["fixed_s"] + plan["step_s"]), n_checkpoints=512)
except InputError as error:
    print(error)
