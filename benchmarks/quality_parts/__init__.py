"""The parts of ``benchmarks/quality.py``, by subject."""
