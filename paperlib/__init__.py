"""Checkable claims of adversarial-robustness papers: from images to a verdict."""

__version__ = "0.6.0"
