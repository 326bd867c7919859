"""The pages of a site about the runs, and what leaves for a paper."""

from paperlib.report.pages import audit_page, build, headline, notebook_page, runs, tally

__all__ = ["audit_page", "build", "headline", "notebook_page", "runs", "tally"]
