"""A venue's style, and how a figure is written: with the data and settings behind it."""

import json
import sys
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from paperlib.runs.files import write_atomically, write_text
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

# Text width in inches, and that of a column where there are two.
WIDTHS = {
    "neurips": 5.5, "iclr": 5.5, "icml": 6.75, "icml-column": 3.25, "cvpr": 6.875, "cvpr-column": 3.25, "aaai": 6.975,
    "aaai-column": 3.3, "wide": 10.0,
}  # fmt: skip
# Okabe & Ito's colours, told apart by colour-blind readers.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "osD^vPXh"


def style(venue: str) -> dict[str, Any]:
    """Matplotlib settings for a venue: its text width, TrueType fonts, and a layout that keeps that width.

    For use on top of the style "default", so that a user's matplotlibrc changes nothing.
    """
    return {
        "figure.figsize": (WIDTHS[venue], WIDTHS[venue] * 0.42), "figure.constrained_layout.use": True,
        "figure.dpi": 150, "savefig.dpi": 300, "savefig.bbox": "standard",  # "tight" would change the width
        "font.family": ["STIXGeneral", "DejaVu Serif"], "mathtext.fontset": "stix", "font.size": 9,
        "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle": cycler(color=COLOURS),
        "legend.frameon": False, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "paperlib",
        "svg.fonttype": "none",  # text stays text, to be searched and edited
    }  # fmt: skip


def new(
    run: Run[Settings], rows: int = 1, columns: int = 1, height: float | None = None, **more: Any
) -> tuple[Figure, Any]:
    """An empty figure in the run's venue style, `height` inches tall, and its axes as `plt.subplots` gives them."""
    plt.style.use(["default", style(run.settings.venue)])  # notebooks draw when the cell ends, so no context manager
    width = WIDTHS[run.settings.venue]
    return plt.subplots(rows, columns, figsize=(width, height or max(1.9, width * 0.42)), **more)


def save(run: Run[Settings], figure: Figure, name: str, data: pd.DataFrame | None = None, words: str = "") -> Figure:
    """Write the figure as PDF, SVG and PNG under figures/, its data as CSV, and as JSON its settings and what it shows.

    The same data give the same bytes: the files carry no dates. Returns the figure, so that a notebook shows it.
    """
    folder = run.folder / "figures"
    provenance = {"notebook": run.notebook, "preset": run.preset, "run": run.folder.name}
    undated: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None, "ModDate": None, "Keywords": json.dumps(provenance)},
        "svg": {"Date": None, "Description": json.dumps(provenance)},
        "png": {"Description": json.dumps(provenance)},
    }
    for kind, metadata in undated.items():
        write_atomically(
            folder / f"{name}.{kind}",
            lambda file, kind=kind, metadata=metadata: figure.savefig(file, format=kind, metadata=metadata),  # type: ignore[misc]
        )
    caller = sys._getframe(1)  # the function that drew it, whose first line says what is seen
    drawer = caller.f_globals.get(caller.f_code.co_name)
    words = words or ((drawer.__doc__ or "").partition("\n")[0] if drawer else "")
    about = {**provenance, "words": words, "settings": run.settings.model_dump()}
    write_text(folder / f"{name}.json", json.dumps(about, indent=1))
    if data is not None:
        numbers = data.drop(columns=["each", "by_seed"], errors="ignore")  # outcomes by image are in evaluation/
        if isinstance(numbers.columns, pd.MultiIndex):
            numbers.columns = [" ".join(filter(None, map(str, column))) for column in numbers.columns]
        write_text(folder / f"{name}.csv", numbers.to_csv(index=False))
    figure.set_label(words)
    _shown_with_words()
    plt.close(figure)
    return figure


def _shown_with_words() -> None:
    """Let a notebook keep a figure's label as the alternative text of its picture."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from IPython.core.pylabtools import print_figure

        shell.display_formatter.formatters["image/png"].for_type(
            Figure, lambda figure: (print_figure(figure, base64=True), {"alt": figure.get_label()})
        )
