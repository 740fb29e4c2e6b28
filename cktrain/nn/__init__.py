"""Layers: modules with an explicit forward and backward, their parameters and their memory."""
