"""The error of the simulator's set-up."""


class SimulatorError(RuntimeError):
    """This machine cannot simulate or render as the records would claim."""
