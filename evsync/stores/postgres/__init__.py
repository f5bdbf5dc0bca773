"""An event store in PostgreSQL."""
