import argparse
from argparse import Namespace
from pathlib import Path

from benchmarks.validity.points import known_points
from local_eval.commands.options import LIKE
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace
from local_eval.unlearned import fill_points

parser = argparse.ArgumentParser()
parser.add_argument("--data-root", type=Path)
parser.add_argument("--work-dir", type=Path)
parser.add_argument("--n-models", type=int, nargs="+")
args = parser.parse_args()
ws = open_workspace(Setting(**LIKE["competition"]), args.work_dir, data_root=args.data_root)
print(ws.folder)
for n in args.n_models:
    fill_retrained(ws, n)
    fill_points(ws, [p.method for p in known_points()], n)
    print("done", n, flush=True)
