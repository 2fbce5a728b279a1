"""Draw a run: accuracy against tokens, a dot with its 95 % interval for each strategy.

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

COLOURS = ["#777777", "#c1666b", "#4281a4", "#1b998b", "#6a4c93", "#d4a017"]


def main(folder: Path, picture: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    names = [strategy["name"] for strategy in spec["strategies"]]
    rows = table(names, Store(folder, spec).results.values())
    mpl.rcParams["svg.hashsalt"] = "branchwise"  # the same run gives the same bytes
    figure, axes = plt.subplots(figsize=(7.2, 3.9))
    for row, colour in zip(rows, COLOURS, strict=False):
        tokens = row.tokens / max(row.graded, 1)
        accuracy = 100 * row.accuracy
        bar = [[accuracy - 100 * row.low], [100 * row.high - accuracy]]
        axes.errorbar(
            tokens, accuracy, yerr=bar, fmt="o", color=colour, capsize=3, label=row.strategy
        )
    axes.set_xscale("log")
    axes.set_xlabel("tokens written per problem")
    axes.set_ylabel("right answers, %")
    axes.set_title(f"{rows[0].graded} problems, {spec['model']['model']}", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
