"""The command that a verdict ends in: what to do next, to be copied."""

import shlex
from importlib import import_module

from kit.methods import method_names
from local_eval.audit.predict import RANKABLE
from local_eval.recipes import GIVEN
from local_eval.report.evidence import Evidence
from local_eval.report.facts import method_words, score_options
from local_eval.unlearned import file_name, method_options

_ENOUGH = 2 * RANKABLE  # models to make next where there are too few


def next_command(evidence: Evidence, name: str, upload: bool | None) -> str:
    """To upload: the notebook. Not to: the search for better hyper-parameters, where the method declares ranges, else
    the other methods. Undecided: more models. Where a command line cannot make those: every number there is."""
    folder, pool = str(evidence.workspace.folder), evidence.pools.get(name)
    given = evidence.workspace.setting.recipe.startswith(GIVEN)
    own = score_options(evidence.spec, evidence.attacks)
    if "" in evidence.faults and not given:
        return _local_eval("retrain", "--setting", folder)
    if pool is None:
        return _local_eval("list", "--work-dir", str(evidence.workspace.folder.parent))
    method, settings = method_options(pool)
    if upload and method:
        sets = [word for setting in settings for word in ("--set", setting)]
        out = f"mine/{file_name(pool.identity['method'])}.ipynb"
        return shlex.join(["python", "-m", "notebooks.build", "--method", method, *sets, "--out", out])
    if upload is False and not given:
        many = ["--setting", folder, "--n-models", str(evidence.rows[name].n_models)]
        if method in method_names() and hasattr(import_module(f"kit.methods.{method}"), "RANGES"):
            return _local_eval("tune", method, *many, "--limit", "2h")
        return _local_eval("leaderboard", *many, *own)
    if upload is None and method and not given:
        words = ["--setting", folder, *method_words(pool), "--n-models", str(max(_ENOUGH, len(pool)))]
        return _local_eval("run", *words, *own)
    return _local_eval("score", str(pool.folder), *own)


def forecast_command(evidence: Evidence, name: str) -> str | None:
    """Of the method on every setting of --like; None where a command line cannot make its models."""
    pool = evidence.pools.get(name)
    if pool is None or not method_options(pool)[0] or "limit_s" in pool.identity:
        return None
    where = ["--n-models", str(evidence.rows[name].n_models), "--work-dir", str(evidence.workspace.folder.parent)]
    return _local_eval("forecast", *method_words(pool), *where)


def _local_eval(*words: str) -> str:
    return shlex.join(["python", "-m", "local_eval", *words])
