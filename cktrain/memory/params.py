"""The former names of what stands in `param.py` and `param_store.py`, until all modules use the new ones."""

from cktrain.memory.param import Param as Param
from cktrain.memory.param import ShardRegion as Place
from cktrain.memory.param_store import ParamStore as FlatParams
from cktrain.memory.param_store import Segment as Segment

__all__ = ["FlatParams", "Param", "Place", "Segment"]
