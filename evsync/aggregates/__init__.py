"""Loading and saving aggregates: events folded, kept in memory and in snapshots, one save per stream at a time."""
