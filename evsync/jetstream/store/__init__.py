"""JetStream as the event store: the stream is the log."""
