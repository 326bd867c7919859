"""The pages of a site about the runs, and what leaves for a paper."""

from paperlib.report.pages import (
    MATH,
    NOTEBOOK_TEMPLATES,
    PRESETS,
    SYMBOLS,
    TEMPLATES,
    audit_page,
    build,
    headline,
    notebook_page,
    runs,
    tally,
)  # fmt: skip
