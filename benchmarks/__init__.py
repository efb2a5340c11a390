"""Measurements and long runs; none of them is part of the test suite."""
