"""The stages of pi0.5 by name, in the order in which an inference runs them."""

STAGES = ("vision", "prefix", "denoise")
