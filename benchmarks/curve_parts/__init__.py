"""What ``curves.py`` is made of: the points, how one is measured, how fast a measure grows, the report."""
