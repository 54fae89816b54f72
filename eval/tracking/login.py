"""Look for a W&B login without asking for one."""

import os

from eval.tracking.base import TrackingError


def require_login(purpose: str = "uploading", *, way_out: str = "") -> None:
    """Raise TrackingError where there is no login, or W&B refuses it.

    `purpose` is what needs it and `way_out` what could be done without it, for the message.
    """
    import wandb  # not installed where nothing is tracked

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        logged_in = wandb.login(prompt=False, verify=True)
    except wandb.errors.Error as error:
        otherwise = f"; or {way_out}" if way_out else ""
        raise TrackingError(f"W&B refused the login: {error}{otherwise}") from error
    if not logged_in:
        set_mode = os.environ.get("WANDB_MODE")
        why = f" (WANDB_MODE={set_mode} is set)" if set_mode else ""
        ways_out = "set WANDB_API_KEY or run `wandb login`"
        if way_out:
            ways_out = f"set WANDB_API_KEY, run `wandb login`, or {way_out}"
        raise TrackingError(f"{purpose} needs a W&B login, and there is none{why}: {ways_out}")
