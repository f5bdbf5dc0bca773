"""What goes through history again to look at a read model: verify, diff, explain."""
