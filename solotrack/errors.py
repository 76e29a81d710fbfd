"""What the errors that a user can mend have in common."""

from __future__ import annotations

__all__ = ["SoloTrackError"]


class SoloTrackError(Exception):
    """Something is wrong with what the user gave; the message says in a sentence what it is and how to mend it."""
