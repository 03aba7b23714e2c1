"""Maximum mean discrepancy (Gretton et al. 2012, "A kernel two-sample test")."""

from __future__ import annotations

from .discrepancy import mmd2, witness
from .fixed import FixedSample
from .streaming import StreamingMMD

__all__ = ["FixedSample", "StreamingMMD", "mmd2", "witness"]
