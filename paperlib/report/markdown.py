"""Markdown for pages: formulas as MathML, and the first heading as plain text."""

import html
import re

from latex2mathml.converter import convert

HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$", re.DOTALL)


def with_formulas(text: str) -> str:
    """Replace the LaTeX in Markdown by MathML."""
    return MATH.sub(lambda match: convert(match[1] or match[2], display="block" if match[1] else "inline"), text)


def heading(text: str) -> str:
    """Return the first heading in Markdown as plain text, with formulas in Unicode; empty if there is none."""
    match = HEADING.search(text)
    return html.unescape(re.sub(r"<[^>]+>", "", with_formulas(match[1]))).strip() if match else ""
