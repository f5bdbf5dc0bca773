"""Event stores in memory and in databases, and what they have in common."""
