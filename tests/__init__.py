"""The tests of evsync."""
