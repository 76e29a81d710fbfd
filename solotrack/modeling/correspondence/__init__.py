"""Correspondence of instances over unlabelled clips."""

from .cycle import cycle_loss

__all__ = ["cycle_loss"]
