"""Whether tables fit, as LaTeX says."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from paperlib.figures import WIDTHS


def too_wide(files: Sequence[Path], venue: str) -> list[str]:
    """What LaTeX says of tables that do not fit the venue's text or its page; fails where it does not compile."""
    folder = files[0].parents[1]
    text, _, columns = venue.partition("-")
    inputs = (r"\twocolumn " if columns else "") + r"\clearpage".join(rf"\input{{{file}}}" for file in files)
    (folder / "all.tex").write_text(
        rf"\documentclass{{article}}\usepackage[textwidth={WIDTHS[text]}in,textheight=9in]{{geometry}}"
        rf"\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.splitlines() if "Overfull" in line or "Float too large" in line]
