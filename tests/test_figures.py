from pathlib import Path

import pandas as pd
import pytest

from paperlib import figures, runs
from paperlib.files import read_json


@pytest.fixture
def run(home: Path) -> runs.Run:
    return runs.Run("toy_pag", "quick", runs.resolve("toy_pag", "quick", {"venue": "icml"}), home / "runs" / "x")


def draw(run: runs.Run, name: str) -> None:
    figure, axis = figures.new(run)
    axis.plot([0, 1], [0, 1], label="λ and ε")
    axis.set_xlabel("$x_1$")
    axis.legend()
    figures.save(run, figure, name, pd.DataFrame({"x": [0, 1]}))


def test_figures_have_the_venues_width_truetype_fonts_and_provenance(run: runs.Run) -> None:
    draw(run, "one")
    folder = run.folder / "figures"
    pdf = (folder / "one.pdf").read_bytes()
    assert f"/MediaBox [ 0 0 {6.75 * 72:g} ".encode() in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert f'width="{6.75 * 72:g}pt"' in (folder / "one.svg").read_text()
    assert read_json(folder / "one.json")["settings"]["epochs"] == 100
    assert (folder / "one.csv").read_text() == "x\n0\n1\n"


def test_the_same_figure_is_the_same_bytes(run: runs.Run) -> None:
    draw(run, "one")
    draw(run, "two")
    for kind in ("pdf", "svg", "png"):
        assert (run.folder / "figures" / f"one.{kind}").read_bytes() == (
            run.folder / "figures" / f"two.{kind}"
        ).read_bytes()


def test_tables_leave_as_csv_and_booktabs(run: runs.Run) -> None:
    data = pd.DataFrame({("pgd_l2", "paper"): [49.68], ("pgd_l2", "here"): [float("nan")]}, index=["one_image"])
    figures.table(run, data, "t", "Accuracy (%) at ε.")
    tex = (run.folder / "tables" / "t.tex").read_text()
    assert r"\toprule" in tex
    assert "One Image" in tex
    assert r"$\ell_2$" in tex
    assert r"(\%) at $\varepsilon$" in tex
    assert "49.7 & --" in tex
    assert "one_image,49.68," in (run.folder / "tables" / "t.csv").read_text()
