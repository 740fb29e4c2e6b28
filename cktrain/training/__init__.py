"""Training: the loop over steps, the objective that it minimises, and what observes it (log, bar, metrics, checkpoints)."""
