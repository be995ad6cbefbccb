"""What makes reconcilers run: work queues, loops, resync, health, metrics."""
