"""What the documentation says is true: its code runs, its links lead somewhere, and every name has a home."""
