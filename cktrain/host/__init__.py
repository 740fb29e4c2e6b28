"""This process on its host: topology, cpu limits, placement of ranks, binding, memory policy, the end of the job's time.

Nothing is imported here: `cktrain.host.bind` must run before numpy loads.
"""
