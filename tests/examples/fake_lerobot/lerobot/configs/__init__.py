"""As `lerobot.configs`."""
