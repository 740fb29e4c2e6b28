"""How good a model is on held-out rows: losses, answers and their metrics, with intervals, beside another model."""
