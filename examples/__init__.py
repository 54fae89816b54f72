"""Examples: what a user writes beside the project, not in it."""
