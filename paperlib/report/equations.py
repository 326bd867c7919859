"""The page docs/equations.md: the line that computes each equation, collected from tags in the code.

A tag is a comment right above the line that computes the formula: `# RAAT (14): …` for a numbered equation,
`# RAAT, Section 2.1: …` for another place. Other papers are cited by authors and year: `# Qin et al. 2019 (5): …`.
Update the page with `python -m paperlib.report.equations`.
"""

import re
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
PAGE = PACKAGE.parent / "docs" / "equations.md"
PAPERS = ("PAG", "GFA", "RAAT", "DAAT")
TAG = re.compile(
    rf" *# (?P<paper>{'|'.join(PAPERS)}|[A-Z][\w&.\- ]* \d{{4}})"
    r"(?: (?P<number>\(\d+\))|, (?P<place>[^:\"]+)): (?P<formula>\S.*)"
)
HEAD = """# Which line computes which equation

Made by `python -m paperlib.report.equations` from the comments in the code; do not edit. A number in parentheses is the
paper's own; where the paper numbers none, its section, table or definition is named. Symbols are the paper's. "Here" says
which part of the formula the line computes, or what differs.
"""


class Tag(NamedTuple):
    """A tagged formula and the line that computes it."""

    paper: str
    place: str  # "(14)", or a section, table or definition
    formula: str
    file: str  # path relative to the project's folder, with slashes
    line: int  # line of the tag, from 1


def tags(text: str, file: str) -> list[Tag]:
    """Return the tags in the source text of a file, in order."""
    found = []
    for line, row in enumerate(text.splitlines(), 1):
        if match := TAG.fullmatch(row):
            found.append(Tag(match["paper"], match["number"] or match["place"], match["formula"], file, line))
    return found


def collected() -> list[Tag]:
    """Return the tags of the whole package, by file and line."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [tag for file in files for tag in tags(file.read_text(), file.relative_to(PACKAGE.parent).as_posix())]


def page(found: list[Tag]) -> str:
    """Return the page in Markdown: a table for each of the four papers and one for all others.

    A paper's table lists numbered equations first, by number, then the other places by name.
    """
    text = HEAD
    for title in (*PAPERS, "Others"):
        rows = [tag for tag in found if tag.paper == title or (title == "Others" and tag.paper not in PAPERS)]
        if not rows:
            continue
        source = "source, equation" if title == "Others" else "equation"
        text += f"\n## {title}\n\n| {source} | formula | code |\n|---|---|---|\n"
        for tag in sorted(rows, key=_order):
            place = tag.place if title != "Others" else f"{tag.paper}{'' if tag.place[0] == '(' else ','} {tag.place}"
            formula = tag.formula.replace("|", r"\|")
            text += f"| {place} | `{formula}` | [{tag.file}:{tag.line}](../{tag.file}#L{tag.line}) |\n"
    return text


def _order(tag: Tag) -> tuple[str, int, str]:
    number = int(tag.place[1:-1]) if tag.place[0] == "(" else 1000
    return "" if tag.paper in PAPERS else tag.paper, number, tag.place


if __name__ == "__main__":
    PAGE.write_text(page(collected()))
