"""What a type checker accepts, and what it must refuse."""
