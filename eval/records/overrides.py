"""Overrides that a record holds: plain choices and values, or they are not run again."""

import re
from collections.abc import Iterable

KEY = re.compile(r"(?:\+{1,2}|~)?[A-Za-z_][A-Za-z0-9_-]*(?:[./][A-Za-z0-9_-]+)*")
MOST_CHARACTERS = 4096
MOST_BRACKETS = 200  # of one override; Hydra's parser recurses


def refuse_lookups(overrides: Iterable[str]) -> None:
    """Refuse recorded overrides that do more than choose a YAML of conf/ or set a value.

    Those are flags, Hydra's own keys, other packages (`group@package`), paths out of conf/, values that are
    looked up (`${oc.env:HOME}`) when the configuration is composed, and `resume`, which would write into the
    folder of another run.

    Raises ValueError with the override and the way out. Which `_target_` they may name is not checked here.
    """
    for text in overrides:
        if why := _why_not(text):
            key = text.partition("=")[0].lstrip("+~")
            raise ValueError(
                f"the recorded override {text!r:.200} {why}; if you trust it, write {key:.100}=... on this "
                "command line, which replaces it"
            )


def _why_not(text: str) -> str | None:
    key, _, value = text.partition("=")
    name = key.lstrip("+~")
    if len(text) > MOST_CHARACTERS:
        return f"has more than {MOST_CHARACTERS} characters"
    if not KEY.fullmatch(key):
        return "is no key=value"
    if not text.isprintable():
        return "has characters that a terminal does not show"
    if re.split("[./]", name)[0] == "hydra":
        return "sets Hydra itself"
    if name == "resume":
        return "goes on with another run"
    if "$" in text and "{" in text:  # Hydra takes `$\\{` for `${` too
        return "may look up a value"
    if sum(text.count(bracket) for bracket in "[{(") > MOST_BRACKETS:
        return f"has more than {MOST_BRACKETS} brackets"
    if "." not in name and ".." in value:
        return "leads out of conf/"
    return None
