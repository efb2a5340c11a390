"""The soak: many workers, one PostgreSQL, every fault at random, and a report of invariants."""
