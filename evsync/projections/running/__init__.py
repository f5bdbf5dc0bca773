"""The runners of projections and reactions, and what they follow."""
