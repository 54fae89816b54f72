"""As `lerobot.policies`."""
