"""An expert without a network: it reads the poses of the scene."""

from policies.oracle.policy import OraclePolicy

__all__ = ["OraclePolicy"]
