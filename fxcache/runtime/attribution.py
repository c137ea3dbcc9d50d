"""Find the context a call belongs to, and keep its state: the one entry of the runtime for compiled calls."""

from __future__ import annotations

from fxcache.runtime.interface import GraphInfo, InputRoles, Lease, Mode, Outcome, Reason, StepRecord, TensorSpec

__all__ = ["GraphInfo", "InputRoles", "Lease", "Mode", "Outcome", "Reason", "StepRecord", "TensorSpec"]
