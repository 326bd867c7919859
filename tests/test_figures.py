import math
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from latex import too_wide
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from paperlib import figures, studies
from paperlib.data import ImageSet
from paperlib.figures import forms, names, tables
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
    svg = (folder / "one.svg").read_text()
    assert f'width="{6.75 * 72:g}pt"' in svg
    assert ">λ and ε</text>" in svg  # text, no outlines
    assert read_json(folder / "one.json")["settings"]["epochs"] == 100
    assert (folder / "one.csv").read_text() == "x\n0\n1\n"


def test_the_same_figure_is_the_same_bytes(run: runs.Run) -> None:
    draw(run, "one")
    draw(run, "two")
    for kind in ("pdf", "svg", "png"):
        assert (run.folder / "figures" / f"one.{kind}").read_bytes() == (
            run.folder / "figures" / f"two.{kind}"
        ).read_bytes()


def test_a_users_matplotlibrc_changes_nothing(run: runs.Run) -> None:
    draw(run, "one")
    own = {"text.usetex": True, "lines.linewidth": 9.0, "axes.grid": True, "figure.facecolor": "red", "font.weight": "bold"}
    with mpl.rc_context(own):
        draw(run, "two")
        assert not mpl.rcParams["text.usetex"]
    for kind in ("pdf", "svg", "png"):
        assert (run.folder / "figures" / f"one.{kind}").read_bytes() == (
            run.folder / "figures" / f"two.{kind}"
        ).read_bytes()


ODD = "<img src=x onerror=alert(1)> $ \"' {b} a^2 ~ \\x %\n&"


def test_odd_names_of_classes_are_drawn_as_they_are(run: runs.Run) -> None:
    pixels, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2] * 2)
    names = (ODD, "$\\frac$ and $", "_")
    figures.contact_sheet(run, ImageSet(pixels, labels, names))
    drawn = (run.folder / "figures" / "images.svg").read_text()
    assert r"$\frac$ and $" in drawn
    assert "<img" not in drawn


def test_odd_texts_are_no_markup_in_tables(run: runs.Run) -> None:
    data = pd.DataFrame({ODD: [ODD], "value": [1.0]}, index=[ODD])
    shown = tables.save(run, data, "odd", ODD)
    assert "<img" not in shown.to_html()
    assert shown.to_html().count("&lt;img") == 3
    written = (run.folder / "tables" / "odd.tex").read_text()
    plain = r"$<$img src=x onerror=alert(1)$>$ \$ \"' \{b\} a\textasciicircum{}2 \textasciitilde{} \textbackslash{}x \% \&"
    assert written.count(plain.replace(r"\"", '"')) == 4  # caption, head, index and cell


def test_tables_leave_as_csv_and_booktabs(run: runs.Run) -> None:
    data = pd.DataFrame({("pgd_l2", "paper"): [49.68], ("pgd_l2", "here"): [float("nan")]}, index=["one_image"])
    tables.save(run, data, "t", "Accuracy (%) at ε.")
    tex = (run.folder / "tables" / "t.tex").read_text()
    assert r"\toprule" in tex
    assert "One Image" in tex
    assert r"$\ell_2$" in tex
    assert r"(\%) at $\varepsilon$" in tex
    assert "49.7 & --" in tex
    spread = {("clean", "here"): [57.04], ("clean", "low"): [49.6], ("clean", "high"): [64.4], "told": ["a_b"]}
    columns = pd.MultiIndex.from_tuples([name if isinstance(name, tuple) else (name, "") for name in spread])
    shown = pd.DataFrame([[value[0] for value in spread.values()]], index=["pag"], columns=columns)
    tables.save(run, shown, "u", "Accuracy.")
    assert r"57.0 (50--64) & a\_b" in (run.folder / "tables" / "u.tex").read_text()
    assert read_json(run.folder / "tables" / "u.json")["rows"] == [["PAG (NN)", "57.0 (50–64)", "a_b"]]
    assert "49.6" in (run.folder / "tables" / "u.csv").read_text()
    assert "one_image,49.68," in (run.folder / "tables" / "t.csv").read_text()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
@pytest.mark.parametrize("venue", ["neurips", "icml-column"])
def test_tables_of_any_width_fit_the_text(run: runs.Run, venue: str) -> None:
    run = replace(run, settings=run.settings.model_copy(update={"venue": venue}))
    parts = [(f"attack_{number}", end) for number in range(17) for end in ("here", "low", "high")]
    wide = pd.DataFrame(50.25, index=["pgd_at", "raat_sharp"], columns=pd.MultiIndex.from_tuples(parts))
    tables.save(run, wide, "wide", "Accuracy (%), ε = 8/255.")
    words = pd.DataFrame({name: ["an outcome – in so many words that they need a second line"] * 20 for name in "αβσ"})
    tables.save(run, words, "long", "Signs; ‖∇L‖², ℓ∞, √d.")
    written = (run.folder / "tables" / "wide.tex").read_text()
    assert max(line.count("&") for line in written.splitlines()) + 1 <= tables.MOST
    assert written.count("50.2 (50--50)") == 2 * 17
    assert not too_wide(sorted((run.folder / "tables").glob("*.tex")), venue)


def test_panels_without_data_and_counts_that_are_not_finite_still_make_figures(run: runs.Run) -> None:
    empty = pd.DataFrame(columns=["panel", "line", "x", "value"])
    figure = figures.panels(run, empty, "nothing", x="x")
    assert [text.get_text() for text in figure.axes[0].texts] == ["nothing of this was trained"]
    assert figure.get_label() == "nothing of this was trained"
    gaps = pd.DataFrame({"estimator": "supervised", "error": "robust", "dimension": [4, 8], "value": [0.1, 0.2]})
    needed = pd.DataFrame({"samples": "labelled", "dimension": [4, 8], "count": [float("inf")] * 2})
    figures.gaussian(run, gaps, needed)
    assert (run.folder / "figures" / "gaussian.png").exists()


def summary(*rows: tuple[str, str, float, float, float, int]) -> pd.DataFrame:
    """Of `evaluation.summary`: method, measure, mean, low, high, n; two seeds around the mean."""
    table = pd.DataFrame(rows, columns=["method", "measure", "mean", "low", "high", "n"])
    return table.assign(by_seed=[np.array([mean - 0.01, mean + 0.01]) for mean in table["mean"]])


def bars(axis: Axes) -> dict[str, list[list[float]]]:
    """What is drawn with intervals along x, by label: value, low and high of each row."""
    return {
        str(drawn.get_label()): [
            [float(x), *part[:, 0].tolist()]
            for x, part in zip(drawn[0].get_xdata(), drawn[2][0].get_segments(), strict=True)
        ]
        for drawn in axis.containers
        if isinstance(drawn, ErrorbarContainer) and len(drawn[0].get_xdata())
    }


def clipped(figure: Figure) -> bool:
    """Whether anything that is drawn reaches beyond the figure's edges, by more than a hundredth of an inch."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn, whole = figure.get_tightbbox(canvas.get_renderer()), figure.bbox_inches.padded(0.01)  # type: ignore[no-untyped-call]
    return not (whole.contains(*drawn.min) and whole.contains(*drawn.max))


def test_accuracies_hold_means_intervals_seeds_and_what_is_reported(run: runs.Run) -> None:
    table = summary(("vanilla", "clean", 0.9, 0.8, 0.95, 800), ("pag", "clean", 0.7, 0.6, 0.75, 800),
                    ("pag", "pgd_l2", 0.3, 0.2, 0.5, 100), ("pag", "one_pixel", 0.5, math.nan, math.nan, 4),
                    ("pag", "pag_score", 0.6, 0.5, 0.7, 100))  # fmt: skip
    figure = figures.accuracies(run, table, {"pag": {"pgd_l2": 49.7}})
    upper, lower = figure.axes
    assert bars(upper) == {"Vanilla": [[90, 80, 95]], "PAG (NN)": [[70, 60, 75], [30, 20, 50]]}
    assert bars(lower) == {"PAG (NN)": [[60, 50, 70]]}  # no accuracy, so on its own axis
    assert [label.get_text() for label in upper.get_yticklabels()] == ["No attack, n = 800", "PGD ℓ2, n = 100"]
    drawn = [list(map(float, line.get_xdata())) for line in upper.lines]
    assert [89.0, 91.0] in drawn  # the seeds
    assert any(49.7 in values for values in drawn)
    assert "one pixel" not in (run.folder / "figures" / "accuracies.csv").read_text()  # four images tell nothing
    empty = figures.accuracies(run, table[table["n"] == 4])
    assert empty.axes[0].texts[0].get_text() == "too few images for an interval"


def test_a_method_has_one_colour_and_name_in_whatever_company() -> None:
    company = (["standard", "pgd_at", "first"], ["raat", "pgd_at", "no method"], ["pgd_at: real", "pgd_at, training"])
    for lines in company:
        found = forms.looks(lines)
        colours = {line.split(",")[0].split(":")[0]: found[line]["color"] for line in lines}
        assert colours["pgd_at"] == "#0072B2"
        assert len(set(colours.values())) == len(colours)
    dashed = forms.looks(["deep, training", "deep, validation", "raat", "raat_equal"])
    assert [look["linestyle"] for look in dashed.values()] == ["-", "--", "--", "--"]
    assert set(names.LOOKS) - {"uniform"} <= set(names.NAMES) | {"twin"}  # what has a colour has a name


def test_heads_have_the_number_of_images_below_each_attack(run: runs.Run) -> None:
    attacks = ["clean", *(f"attack {number}" for number in range(16))]
    table = pd.DataFrame([("pgd_at", attack, number / 20, 100 + number) for number, attack in enumerate(attacks)],
                         columns=["method", "measure", "mean", "n"])  # fmt: skip
    figure = figures.grid(run, table)
    shown = [label.get_text() for axis in figure.axes for label in axis.get_xticklabels()]
    assert shown == [str(100 + number) for number in range(17)]
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == [f"{5 * number}" for number in range(17)]
    assert not clipped(figure)


def test_curves_of_training_are_means_and_ranges_over_seeds_in_percent(run: runs.Run) -> None:
    rows = [("daat", seed, epoch, clean, 10 * clean) for seed, clean in ((0, 0.4), (1, 0.6)) for epoch in (1, 2, 3)]
    histories = pd.DataFrame(rows, columns=["method", "seed", "epoch", "clean_accuracy", "total"])
    figure = figures.training_curves(run, histories, ["clean_accuracy", "total", "of no method"])
    shares, loss = figure.axes
    line, _, (arms,) = shares.containers[0]
    assert line.get_xydata().tolist() == [[1, 50], [2, 50], [3, 50]]
    assert arms.get_segments()[0].tolist() == [[1, 40], [1, 60]]
    assert loss.containers[0][0].get_ydata().tolist() == [5, 5, 5]
    assert [axis.get_title() for axis in figure.axes] == ["validation, no attack (%)", "loss"]
    figure.canvas.draw()
    assert all(float(tick).is_integer() for tick in shares.get_xticks())  # no epoch and a half


def test_what_lies_beyond_the_search_does_not_fall_and_what_is_wrong_falls_at_zero(run: runs.Run) -> None:
    found = pd.DataFrame({"panel": "ddn", "line": "deep", "distance": [0.0, 1.0, 2.0, 60.0, math.inf]})
    figure = figures.beyond(run, found, "far", "distance", limit=60.0)
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [100, 80, 60, 40, 40]
    assert line.get_xdata().tolist()[:4] == [0, 0, 1, 2]
    assert figure.axes[0].get_xlim()[1] < 3  # one image in fifty squashes no other
    margins = pd.DataFrame({"method": "pag", "seed": 0, "direction": ["along", "across"], "distance": [60.0, 5.0]})
    across = figures.margins(run, margins, eps=15.0).axes
    assert [axis.get_title() for axis in across] == ["along the manifold", "across the manifold"]
    assert across[0].lines[0].get_ydata().min() == 100


def test_words_are_not_joined_and_many_points_have_a_band(run: runs.Run) -> None:
    words = pd.DataFrame({"line": "raat", "x": ["bound", "dicar"], "value": [1.0, 2.0], "low": 0.0, "high": 3.0})
    (bar,) = figures.panels(run, words, "words", x="x").axes[0].containers
    assert bar[0].get_linestyle() == "None"
    many = pd.DataFrame({"line": "raat", "distance": np.arange(30.0), "value": 1.0, "low": 0.5, "high": 3.0})
    axis = figures.panels(run, many, "many", x="distance").axes[0]
    assert axis.collections[0].get_paths()[0].get_extents().bounds == (0, 0.5, 29, 2.5)
    assert axis.lines[0].get_marker() == "None"


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
    one, other = (part for part in (part.get_offsets().tolist() for part in figure.axes[0].collections) if part)
    assert one == [[0, 0], [1, 10], [2, 20], [3, 30]]
    assert other == [[4, 40], [5, 50]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    far = models.assign(x=[0.0, 1.0, 2.0, 3.0, 4.0, 1000.0])
    (axis,) = figures.against(run, {"one": far}, ["x"], "robust").axes
    assert axis.get_xlim()[1] < 30  # the one far out is an arrow at the edge
    assert sum(len(part.get_offsets()) for part in axis.collections) == 6
    nothing = figures.against(run, {"one": models[:0]}, ["x"], "robust")
    assert nothing.axes[0].texts[0].get_text() == "no model has learnt"


def test_outcomes_by_image_stay_out_of_the_files(run: runs.Run) -> None:
    table = pd.DataFrame({"method": ["a"], "mean": [0.5], "each": [[True, False]]})
    figure, _ = figures.new(run)
    figures.save(run, figure, "f", table)
    assert (run.folder / "figures" / "f.csv").read_text() == "method,mean\na,0.5\n"


def test_a_table_of_nothing_says_so(run: runs.Run) -> None:
    assert "Nothing of it was measured" in tables.save(run, pd.DataFrame(), "empty", "Others.")
    assert not (run.folder / "tables" / "empty.csv").exists()


def test_changes_are_drawn_for_each_image_and_method_on_one_scale(run: runs.Run) -> None:
    images, maps = torch.rand(2, 3, 16, 16), torch.rand(5, 8, 8)
    up, down = maps.clone(), maps.clone()
    up[0, 0, 0] += 2.0
    down[1, 0, 0] -= 1.0
    figure = figures.changes(run, "moved", images, {"daat": (maps, up), "without_align": (maps, down)}, "map")
    assert len(figure.axes) == 2 * 4  # images, the map that both have, a change each
    first, second = ([axis.images[0].get_array() for axis in figure.axes[start : start + 2]] for start in (4, 6))
    red, blue, white = first[0][0, 0], second[1][0, 0], first[1][0, 0]
    assert red[0] > 0.3 > max(red[1], red[2]) - 0.2
    assert blue[2] > blue[0]
    assert min(white) > 0.95
    assert np.abs(red - white).sum() > np.abs(blue - white).sum()  # half as far
    apart = figures.changes(run, "apart", images, {"daat": (maps, up), "without_align": (down, maps)}, "map")
    assert len(apart.axes) == 2 * 7


def test_the_depth_sheet_has_a_row_for_each_map(run: runs.Run) -> None:
    found = figures.depth_sheet(
        run, torch.rand(4, 3, 8, 8), {"disparity, exact": torch.rand(4, 8, 8), "flat": torch.ones(4, 8, 8)}
    )
    assert [axis.texts[0].get_text() for axis in found.axes[::4]] == ["image", "disparity, exact", "flat"]


def test_a_figure_says_in_words_what_is_seen_whichever_module_drew_it(run: runs.Run) -> None:
    """The first line of the function that drew it, kept in its file and as its picture's alternative text."""
    data = pd.DataFrame({"method": ["a"], "measure": ["clean"], "mean": [0.5], "n": [10]})
    depths = torch.rand(2, 8, 8)
    for drawn, function in (
        (figures.grid(run, data), figures.grid),
        (figures.depth_sheet(run, torch.rand(2, 3, 8, 8), {"exact": depths}), figures.depth_sheet),
    ):
        first = (function.__doc__ or "").partition("\n")[0]
        assert first
        assert drawn.get_label() == first
    assert read_json(run.folder / "figures" / "depth.json")["words"] == first
