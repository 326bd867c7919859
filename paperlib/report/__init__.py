"""The site of all runs, and exports for papers and leaderboards."""

from paperlib.report.pages import audit_page, build, headline, notebook_page
