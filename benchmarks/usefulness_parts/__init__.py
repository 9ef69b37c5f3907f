"""The parts of ``benchmarks/usefulness.py``, by subject."""
