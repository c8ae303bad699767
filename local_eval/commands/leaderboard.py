"""The command leaderboard: many methods on one setting, made where they are missing, in one table and on one page."""

import argparse

from kit.device import choose_device
from kit.ledger import write_atomically
from kit.tools.cli import answer
from local_eval.assess import FEWEST
from local_eval.commands import options as shared
from local_eval.commands.pools import note_retrained, note_reuse
from local_eval.commands.score_options import spec_of
from local_eval.devices import hidden_cuda
from local_eval.leaderboard import entrants, fill_board
from local_eval.leaderboard import leaderboard as measure
from local_eval.metric import FORMS
from local_eval.report.leaderboard import board_csv, board_notes, board_page, board_rows, board_table
from local_eval.report.table import aligned
from local_eval.report.write import provenance
from local_eval.results import check_files
from local_eval.retrained import fill_retrained
from local_eval.unlearned import unlearned_pool

PAGE = "leaderboard.html"


def leaderboard(args: argparse.Namespace) -> int:
    """Fill what is missing, measure, write the page. 1 where a method failed: its row says why."""
    shared.at_least(args.n_models, FEWEST)
    with hidden_cuda(str(choose_device(args.device))):
        chosen, spec = entrants(args.methods), spec_of(args)
    check_files(args.out, args.csv)
    workspace = shared.workspace_of(args)
    note_retrained(workspace, args.n_models)
    pools = [unlearned_pool(workspace, one.method, args.seed) for one in chosen]
    note_reuse("unlearned models", args.n_models, *pools)
    common = {"devices": shared.devices_for(args, workspace, args.n_models), "progress": not args.quiet}
    fill_retrained(workspace, args.n_models, **common)
    faults = fill_board(workspace, chosen, args.n_models, seed=args.seed, **common)
    options = {"seed": args.seed, "spec": spec, "attack": FORMS[args.attacks], "progress": not args.quiet}
    board = measure(workspace, chosen, args.n_models, faults, **options)
    page, command = args.out or workspace.folder / PAGE, shared.command_line(args)
    write_atomically(page, board_page(workspace, board, spec, args.attacks, command, page.parent).encode())
    shared.open_page(args, page)
    written = [page]
    if args.csv:
        write_atomically(args.csv, board_csv(board).encode())
        written.append(args.csv)
    facts = provenance(workspace, command) | {
        "n_models": board.n_models,
        "attacks": args.attacks,
        "seed": args.seed,
        "rows": board_rows(board),
        "notes": board_notes(board),
        "page": str(page),
    }
    lines = [*(line.rstrip() for line in aligned(board_table(board))), "", *facts["notes"]]
    answer(args, facts, [*lines, "", "report: " + ", ".join(map(str, written))])
    return int(any(entry.fault for entry in board.entries))
