"""Hosts, jobs of ranks and the command line.

Nothing is imported here: a command binds its process (`cktrain.host.bind`) before numpy loads.
"""
