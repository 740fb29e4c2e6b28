"""Whole models, each on about one screen."""
