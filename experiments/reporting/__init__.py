"""A run's report: one text, as Markdown and as a page that needs nothing beside it."""

from __future__ import annotations

from experiments.reporting.pictures import picture_of
from experiments.reporting.told import Report
from experiments.reporting.writing import write_pages, write_report

__all__ = ["Report", "picture_of", "write_pages", "write_report"]
