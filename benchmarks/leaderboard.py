"""Writes what a finished run measured into README.md, between the marks `<!-- leaderboard -->` and `<!-- /leaderboard -->`, and draws it into assets/leaderboard.png.

    zenbot run demo && python benchmarks/leaderboard.py runs/demo     # the same as `make leaderboard`; up to half an hour
"""
import re
import sys
from pathlib import Path

from zenbot.core import Run, read_json, write_text
from zenbot.leaderboard import MEASURES, comparable_loss, plot_leaderboard, read_board, tables

README = Path(__file__).parent.parent / "README.md"


def markdown(table: list) -> str:
    """A table of dicts in Markdown."""
    lines = [list(table[0]), ["---"] * len(table[0]), *(row.values() for row in table)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def block(run: Run) -> str:
    """What the README says of a run."""
    board, stages = read_board(run / "results"), run.record["stages"]
    forgotten = ", ".join(f"{e['model']} {e['general_loss']:.3f}" for e in board if e.get("general_loss"))
    power = ", ".join(f"{v:.3f} of {MEASURES[m][3]}" for m, v in next(e["detectable"] for e in board if e["model"] == "stage 2").items() if v and m in (comparable_loss(board), "rouge_l", "similarity", "token_match"))
    data = read_json(run / "data/card.json")
    minutes = {name: f"{e['seconds'] / 60:.1f}" for name, e in stages.items()}
    return "\n\n".join([
        f"{data['rows']['train']} training rows, {board[0]['n']} held-out rows. Minutes: {', '.join(f'{n} {m}' for n, m in minutes.items())}.",
        "![The leaderboard as a picture: points are estimates, bars 95 % intervals.](assets/leaderboard.png)",
        *map(markdown, tables(board)),
        f"Loss on other text (code), nats per token: {forgotten}. With so many rows a difference to the base shows, four times in five, from these sizes on: {power}."])


if __name__ == "__main__":
    run = Run(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    if not read_board(run / "results"):
        sys.exit(f"{run.path} has no leaderboard yet: zenbot run demo --run {run.path}")
    text = README.read_text(encoding="utf-8")
    write_text(README, re.sub(r"(<!-- leaderboard -->\n).*?(<!-- /leaderboard -->)", lambda m: f"{m[1]}\n{block(run)}\n\n{m[2]}", text, flags=re.S))
    plot_leaderboard(read_board(run / "results"), README.parent / "assets/leaderboard.png")
