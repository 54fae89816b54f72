"""What makes a stage faster, or raises."""
