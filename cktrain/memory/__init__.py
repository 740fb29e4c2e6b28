"""The memory of a run: arenas, the slots of micro-batches, and the parameters in their flat buffers."""
