"""Two services kept in step: users owns people, orders shows their names without ever asking users."""
