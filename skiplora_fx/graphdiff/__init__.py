"""What the passes did to a model's graphs, stage by stage, and what would be skipped."""
