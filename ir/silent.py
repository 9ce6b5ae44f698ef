"""What is called where nobody wants to be told."""

from __future__ import annotations


def silent(*told: object) -> None:
    """Takes what a progress bar or an observer would, and does nothing."""
