"""The tests that a team would write for the example's services."""
