"""Words for messages: counts, the first few names of many, values of files, words of a command."""

import itertools
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = 10
BRIEF = 100
# C0, C1, marks and overrides of direction, separators of lines and paragraphs, surrogates, a byte order mark.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
# Texts that Hydra takes as they are: with a slash, like a file's name, or a word that is no value of its own.
_PLAIN = re.compile(
    r"[A-Za-z0-9_.-]*/[A-Za-z0-9_./-]*|[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_]+"
    r"|(?!(?i:null|true|false|nan|inf)\Z)[A-Za-z_][A-Za-z0-9_]*"
)


def pluralize(number: int | str, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"


def shorten(names: Iterable[object], separator: str = ", ") -> str:
    """`a, b, c`, or the first `SHOWN` of them `and N more`."""
    every = [str(name) for name in names]
    rest = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return separator.join(every[:SHOWN]) + rest


def visible(text: str, *, lines: bool = False) -> str:
    """Write what a terminal obeys, or what turns the order of reading, as its escape: `\\x1b`, `\\u202e`.

    Args:
        lines: keep line feeds.
    """
    return _UNSEEN.sub(lambda match: match[0] if lines and match[0] == "\n" else _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", errors="backslashreplace").decode()


def brief(value: Any) -> str:
    """Write a value of a JSON file on one line: text as it is, else JSON; the first `BRIEF` characters."""
    plain = isinstance(value, str) and value.isprintable()
    text = value if plain else json.dumps(value)
    return text if len(text) <= BRIEF else f"{text[:BRIEF]}..."


def crop(text: str, width: int) -> str:
    """Leave out the middle of a text that is longer than `width` characters: `put the bow..n the plate`."""
    if len(text) <= width:
        return text
    tail = (width - 2) // 2
    return f"{text[: width - 2 - tail]}..{text[len(text) - tail :]}"


def distinct(texts: Sequence[str]) -> list[str]:
    """Leave out the words that all of several texts begin and end with; a text keeps at least one word."""
    words = [text.split() for text in texts]
    if len(words) < 2:
        return list(texts)
    spare = min(map(len, words)) - 1
    begin = _shared(words, spare)
    end = _shared([list(reversed(one)) for one in words], spare - begin)
    return [" ".join(one[begin : len(one) - end]) for one in words]


def _shared(words: Sequence[Sequence[str]], most: int) -> int:
    """How many words all begin with, at most `most`."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    return min(sum(1 for _ in same), max(most, 0))


def listing(title: str, names: Iterable[str]) -> str:
    """Word one list of an error: a count and a title, then a line for each of the first names in order."""
    names = sorted(names)
    indent = "\n    "
    return f"\n  {len(names)} {title}:{indent}{shorten(names, indent)}"


def quoted(key: str, value: str) -> str:
    """Write an override that sets a key to a text.

    Unquoted, Hydra reads `a,b` as two values and `2026_11` as a number. `${` is escaped, with the backslashes
    before it, or Hydra would look up what follows; likewise a quote, also the last one.
    """
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)\Z", r"\1\1", text)
    return f"{key}='{text}'"


def shell_override(key: str, value: str) -> str:
    """Write the override that sets a key to a text as one word for a shell, unquoted where that will do."""
    return shlex.quote(f"{key}={value}" if _PLAIN.fullmatch(value) else quoted(key, value))


def shell_command(module: str, *words: str) -> str:
    """Write a command of ours for a shell: `python -m MODULE` and words that are quoted already.

    It begins with the path of this interpreter where the shell's `python` would be another one.
    """
    named = shutil.which("python")
    is_this = named is not None and os.path.abspath(named) == sys.executable
    return " ".join(["python" if is_this else shlex.quote(sys.executable), "-m", module, *words])
