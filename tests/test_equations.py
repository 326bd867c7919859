"""The equation tags: one spelling, one home each, right above code, and no equation of the four papers' methods without."""

import ast
import re

import pytest
from conftest import REPOSITORY

from paperlib.report import equations
from paperlib.report.equations import Tag

# What each paper's method consists of, read from its text. Left out is what trains nothing: PAG (5), RAAT (1) and (7) are
# plain adversarial training as background, RAAT (2)–(6) belong to the proofs of its theorems.
CORE = {
    "PAG": {
        "(1)",  # the objective
        "(2)",  # the cosine loss
        "(3)",  # Nearest Neighbor
        "(4)",  # cross-entropy
        "Section 4.1",  # RIGD's targets
        "Section 4.2",  # targets from representatives
        "Section 4.2 (Class Mean)",
    },
    "GFA": {  # its texts number no equation
        "Method Summary",  # the squared error
        "Critical path, step 3",  # gradients with respect to features
        "Critical path, step 4",  # the alignment penalty
        "Critical path, step 5",  # the objective
    },
    "RAAT": {
        "(8)",  # the reduced adversarial sample
        "(9)",  # the partition
        "(10)",  # the risk of non-boundary samples
        "(11)",  # that of boundary samples
        "(12)",  # their sum
        "(13)",  # cross-entropy
        "(14)",  # boosted cross-entropy
        "(15)",  # the mixture distribution
        "(16)",  # Jensen–Shannon consistency
        "Definition 4",  # DICAR
        "Appendix C.2",  # the mix rate
        "Table 4 (PGD-AT)",
        "Table 4 (TRADES)",
        "Table 4 (MART)",
        "Table 4 (Cons-AT)",
        "Table 4 (RAAT, CE)",
        "Table 4 (RAAT and RAAT++, JS)",
        "Table 4 (RAAT++, BCE)",
        "Table 4 (RAAT++, KL)",
    },
    "DAAT": {
        "(1)",  # depth saliency
        "(2)",  # depth–attention alignment
        "(3)",  # feature alignment
        "(4)",  # its weight
        "(5)",  # the objective
        "Section 3.2",  # the attention
        "Section 3.5",  # the schedule
    },
}


def statements(text: str) -> dict[int, int]:
    """Line and indentation of each statement that computes something: no docstring, no `def` or `class`."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    named = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    constant = [node for node in found if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    return {node.lineno: node.col_offset for node in found if not isinstance(node, named) and node not in constant}


def test_a_tag_is_told_from_other_comments() -> None:
    text = """
# RAAT (14): L_BCE = …
    # PAG, Section 4.2 (Class Mean): r = c · mean
# Qin et al. 2019 (5): |ℓ(x + δ) − …|
# RAAT: a method
# Equation (14)
x = 1  # RAAT (14): behind code
# Note: nothing
"""
    assert equations.tags(text, "a.py") == [
        Tag("RAAT", "(14)", "L_BCE = …", "a.py", 2),
        Tag("PAG", "Section 4.2 (Class Mean)", "r = c · mean", "a.py", 3),
        Tag("Qin et al. 2019", "(5)", "|ℓ(x + δ) − …|", "a.py", 4),
    ]


def test_the_page_links_each_tag_by_paper_and_number() -> None:
    written = equations.page(
        [Tag("RAAT", "Table 4", "c", "b.py", 1), Tag("RAAT", "(10)", "|a|", "a.py", 3), Tag("RAAT", "(9)", "b", "a.py", 7)]
    )
    assert written.splitlines()[-3:] == [
        "| (9) | `b` | [a.py:7](../a.py#L7) |",
        r"| (10) | `\|a\|` | [a.py:3](../a.py#L3) |",
        "| Table 4 | `c` | [b.py:1](../b.py#L1) |",
    ]


def test_the_page_is_up_to_date() -> None:
    assert equations.PAGE == REPOSITORY / "docs" / "equations.md"
    written = equations.PAGE.read_text()
    assert written == equations.page(equations.collected()), "run `python -m paperlib.report.equations`"


def test_every_equation_has_one_home() -> None:
    places = [(tag.paper, tag.place) for tag in equations.collected()]
    assert sorted(places) == sorted(set(places))


@pytest.mark.parametrize("paper", equations.PAPERS)
def test_the_papers_method_is_covered(paper: str) -> None:
    assert {tag.place for tag in equations.collected() if tag.paper == paper} >= CORE[paper]


def test_every_tag_stands_right_above_the_code_that_computes_it() -> None:
    for tag in equations.collected():
        text = (REPOSITORY / tag.file).read_text()
        row = text.splitlines()[tag.line - 1]
        indentation = len(row) - len(row.lstrip())
        assert statements(text).get(tag.line + 1) == indentation, tag
        assert "`" not in tag.formula, tag  # the page sets formulas as code


def test_no_equation_is_cited_in_another_spelling() -> None:
    paper = "|".join(equations.PAPERS)
    other = re.compile(rf"# *(Equation|Eq\.|Definition|Theorem|Proposition|(Table|Section) [\d.]+:|({paper})\b.*:)|[Σ∇‖∂]")
    for file in sorted(equations.PACKAGE.rglob("*.py")):
        for line, row in enumerate(file.read_text().splitlines(), 1):
            if row.lstrip().startswith("#") and not equations.TAG.fullmatch(row):
                assert not other.search(row), f"{file.name}:{line}: {row}"
