"""Hosts, NUMA topology, placement, binding and the command line.

Nothing is imported here: `cktrain.launch.bind` must run before numpy loads.
"""
