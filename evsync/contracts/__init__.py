"""What a service publishes, written down; and what a change of it means to those who read its events."""
