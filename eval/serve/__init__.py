"""Serve: a policy behind openpi's websocket protocol or vla-eval's, for robots and harnesses of others."""
