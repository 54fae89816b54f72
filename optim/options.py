"""What the configuration may say of all backends; torch is not imported here."""

ON_MISMATCH = ("raise", "fallback")  # a call with inputs that a backend was not built for
JACOBIANS = ("identity", "exact")  # of guidance (`policies.base.GuideOptions`)
