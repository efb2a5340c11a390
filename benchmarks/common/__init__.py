"""What the benchmarks share: a durable database, the stub, rounds, figures and where they go."""
