"""What the passes did to a model's graphs, stage by stage, and what would be skipped."""

from .files import read_snapshot
from .graph_diff import GraphDiff, compare, diff, stages_of

__all__ = ["GraphDiff", "compare", "diff", "read_snapshot", "stages_of"]
