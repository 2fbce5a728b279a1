"""Draw a run: a dot with its 95 % interval for each strategy, and what it wrote per problem.

    python docs/picture.py RUN_DIRECTORY PICTURE.svg

Needs matplotlib (`pip install --group docs`).
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from branchwise.runs.report import table
from branchwise.runs.store import Store


def main(folder: Path, picture: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    names = [strategy["name"] for strategy in spec["strategies"]]
    rows = table(names, Store(folder, spec).results.values())
    mpl.rcParams["svg.hashsalt"] = "branchwise"  # the same run gives the same bytes
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.45 * len(rows)))
    for place, row in enumerate(rows):
        accuracy = 100 * row.accuracy
        bar = [[accuracy - 100 * row.low], [100 * row.high - accuracy]]
        colour = "#777777" if place == 0 else "#1b7f79"
        axes.errorbar(accuracy, -place, xerr=bar, fmt="o", color=colour, capsize=3)
        tokens = row.tokens / max(row.graded, 1)
        axes.text(1.02, -place, f"{tokens:,.0f}", transform=axes.get_yaxis_transform(), va="center")
    axes.text(1.02, 0.7, "tokens each", transform=axes.get_yaxis_transform(), fontsize=8)
    axes.axvline(100 * rows[0].accuracy, color="#777777", alpha=0.4, linestyle=":")
    axes.set_yticks([-place for place in range(len(rows))], [row.strategy for row in rows])
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_xlabel("right answers, %, with 95 % intervals")
    axes.set_title(f"{rows[0].graded} problems, {spec['model']['model']}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
