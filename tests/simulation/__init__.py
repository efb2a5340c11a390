"""Whole workers on a simulated clock, network and database, with seeded faults.

`python -m tests.simulation --seed N -v` replays one seed; docs/decisions/0010 says how and why.
"""
