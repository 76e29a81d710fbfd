"""What tools/benchmark.py measures, a module for each part of the system, and what all of them measure with."""
