"""Maximum mean discrepancy (Gretton et al. 2012, "A kernel two-sample test")."""

from __future__ import annotations

from .discrepancy import mmd2, witness
from .fixed import FixedSample

__all__ = ["FixedSample", "mmd2", "witness"]
