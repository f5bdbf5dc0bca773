"""Which slot a stream belongs to, and which shard holds a slot."""
