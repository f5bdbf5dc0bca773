"""Read models: where rows, checkpoints, leases and parked events are kept."""
