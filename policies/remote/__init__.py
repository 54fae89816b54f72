"""A policy that another process serves, asked over a websocket: openpi's protocol or vla-eval's."""

from policies.remote.policy import RemotePolicy

__all__ = ["RemotePolicy"]
