from pathlib import Path

import pandas as pd
import pytest
import torch

from paperlib import figures, studies
from paperlib.figures import tables
from paperlib.runs import run as runs
from paperlib.runs.files import read_json


@pytest.fixture
def run(home: Path) -> runs.Run:
    return runs.Run("toy_pag", "quick", studies.resolve("toy_pag", "quick", {"venue": "icml"}), home / "runs" / "x")


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
    tables.save(run, data, "t", "Accuracy (%) at ε.")
    tex = (run.folder / "tables" / "t.tex").read_text()
    assert r"\toprule" in tex
    assert "One Image" in tex
    assert r"$\ell_2$" in tex
    assert r"(\%) at $\varepsilon$" in tex
    assert "49.7 & --" in tex
    assert "one_image,49.68," in (run.folder / "tables" / "t.csv").read_text()


def test_panels_without_data_and_counts_that_are_not_finite_still_make_figures(run: runs.Run) -> None:
    empty = pd.DataFrame(columns=["panel", "line", "x", "value"])
    figure = figures.panels(run, empty, "nothing", x="x")
    assert "nothing of this was trained" in [text.get_text() for text in figure.axes[0].texts]
    gaps = pd.DataFrame({"estimator": "supervised", "error": "robust", "dimension": [4, 8], "value": [0.1, 0.2]})
    needed = pd.DataFrame({"samples": "labelled", "dimension": [4, 8], "count": [float("inf")] * 2})
    figures.gaussian(run, gaps, needed)
    assert (run.folder / "figures" / "gaussian.png").exists()


def test_panels_draw_every_line_with_its_interval(run: runs.Run) -> None:
    rows = [(panel, line, x, 10.0 * x, 10.0 * x - 1, 10.0 * x + 2) for panel in ("a", "b") for line in ("p", "q")
            for x in (2, 1)]  # fmt: skip
    data = pd.DataFrame(rows, columns=["panel", "line", "x", "value", "low", "high"])
    figure = figures.panels(run, data, "lines", x="x")
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    for axis in figure.axes:
        assert len(axis.containers) == 2
        line, _, (bars,) = axis.containers[0]
        assert line.get_xydata().tolist() == [[1, 10], [2, 20]]  # in order of x
        assert bars.get_segments()[0].tolist() == [[1, 9], [1, 12]]
    words = data.assign(x=data["x"].map({1: "late", 2: "early"}))
    axis = figures.panels(run, words, "words", x="x").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["early", "late"]  # as they come


def test_each_measure_has_a_panel_and_each_model_a_mark_of_its_kind(run: runs.Run) -> None:
    index = pd.MultiIndex.from_product([["a", "a_equal", "b"], [0, 1]], names=["method", "seed"])
    models = pd.DataFrame({"x": range(6), "y": range(6), "robust": [value / 10 for value in range(6)]}, index=index)
    parts = {"one": models[:4], "other": models[4:], "none": models[:0]}
    figure = figures.against(run, parts, ["x", "y"], "robust")
    assert len(figure.axes) == 2
    one, other, _ = (part.get_offsets().tolist() for part in figure.axes[0].collections)
    assert one == [[0, 0], [1, 10], [2, 20], [3, 30]]
    assert other == [[4, 40], [5, 50]]
    assert figure.legends[0].get_texts()[1].get_text() == "other"


def test_outcomes_by_image_stay_out_of_the_files(run: runs.Run) -> None:
    table = pd.DataFrame({"method": ["a"], "mean": [0.5], "each": [[True, False]]})
    figure, _ = figures.new(run)
    figures.save(run, figure, "f", table)
    assert (run.folder / "figures" / "f.csv").read_text() == "method,mean\na,0.5\n"


def test_a_table_of_nothing_says_so(run: runs.Run) -> None:
    assert "Nothing of it was measured" in tables.save(run, pd.DataFrame(), "empty", "Others.")
    assert not (run.folder / "tables" / "empty.csv").exists()


def test_changes_are_drawn_for_each_image_and_method(run: runs.Run) -> None:
    images, maps = torch.rand(2, 3, 16, 16), torch.rand(5, 8, 8)
    still, moved = (maps, maps), (maps, maps.flip(1))
    figure = figures.changes(run, "moved", images, {"daat": still, "without_align": moved}, "map")
    assert len(figure.axes) == 2 * 7 + 1  # and the scale
    drawn = [[len(axis.collections) for axis in figure.axes[row * 7 : row * 7 + 7]] for row in (0, 1)]
    assert [row[3] for row in drawn] == [0, 0]  # no contour where nothing moved
    assert [row[6] for row in drawn] == [1, 1]
    quiet = figures.changes(run, "still", images, {"daat": still}, "map")
    assert len(quiet.axes) == 2 * 4 + 1


def test_the_depth_sheet_has_a_row_for_each_map(run: runs.Run) -> None:
    found = figures.depth_sheet(
        run, torch.rand(4, 3, 8, 8), {"disparity, exact": torch.rand(4, 8, 8), "flat": torch.ones(4, 8, 8)}
    )
    assert [axis.get_title() for axis in found.axes] == ["image", "disparity, exact", "flat"]


def test_a_figure_says_in_words_what_is_seen_whichever_module_drew_it(run: runs.Run) -> None:
    """The first line of the function that drew it, kept in its file and as its picture's alternative text."""
    data = pd.DataFrame({"method": ["a"], "measure": ["clean"], "mean": [0.5]})
    depths = torch.rand(2, 8, 8)
    for drawn, function in (
        (figures.grid(run, data), figures.grid),
        (figures.depth_sheet(run, torch.rand(2, 3, 8, 8), {"exact": depths}), figures.depth_sheet),
    ):
        first = (function.__doc__ or "").partition("\n")[0]
        assert first
        assert drawn.get_label() == first
    assert read_json(run.folder / "figures" / "depth.json")["words"] == first
