"""The peers: other job queues on PostgreSQL, doing what ours does, each in a process of its own."""
