"""Rebuilds: a shadow is filled from history and exchanged for the read model."""
