"""Training runs: their folders on disk, and their whole state for stock torch."""

from convert.runs.torch_state import rng_at, run_from_torch, run_to_torch, schedule_of

__all__ = ["rng_at", "run_from_torch", "run_to_torch", "schedule_of"]
