"""Weights that shipped with this project before: where records that were made with them find them again."""

FOLDER = "policies/reference/weights"
SHIPPED_BEFORE = {  # SHA-256 of model.safetensors to the commit that has the folder
    "3862cc12af6a3c69e1a6b06be2196a494121de269132655fac330b03f707b3fc": (
        "9c0371c751b2c3d57b619596726cdb73629353e7"
    ),
}


def how_to_get(sha256: object) -> str:
    """Say how to get weights that shipped before, as the end of a message; empty for all others."""
    if (commit := SHIPPED_BEFORE.get(str(sha256))) is None:
        return ""
    return (
        f"; {str(sha256)[:12]} shipped as checkpoint=reference until others replaced it: "
        f"`mkdir OLD && git archive {commit[:7]} {FOLDER} | tar -x -C OLD`, then "
        f"checkpoint.path=OLD/{FOLDER} checkpoint.sha256={sha256}"
    )
