"""Read files of a folder that somebody else may have filled: plain files, of bounded size, with typed fields.

Nothing else in the project opens the records of a run or a sweep to read them. What is trusted and what not
stands in docs/security.md.
"""

import json
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from policies.files import NotPlain, read_plain
from policies.text import BRIEF, brief

MEBIBYTE = 2**20
MOST_JSON = 32 * MEBIBYTE  # of run.json and sweep.json; the largest that we know has 0.1
MOST_LINES = 512 * MEBIBYTE  # of episodes.jsonl and inferences.jsonl; 500 episodes have 3
MOST_LINE = MEBIBYTE  # of one record; the writer keeps below it
PACKED = ".gz"  # suffix of a file of lines that `gzip` packed
STRICT: Any = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""pydantic's configuration of a record: no text is a number, and no unknown field is passed over."""
OPEN: Any = {**STRICT, "extra": "allow"}
"""That of an object of which readers read some fields."""

T = TypeVar("T")


class DamagedRecords(ValueError):
    """A file of records is damaged; `reason` is the message without the folder.

    `problem` follows the file's name and begins with its separator: `:3: corrupt`.
    """

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file}{problem}")
        self.file = file
        self.problem = problem
        self.reason = f"{file.name}{problem}"


def read_bytes(file: Path, most: int) -> bytes:
    """Read a plain file; FileNotFoundError for none, DamagedRecords for a link, a pipe or too many bytes."""
    try:
        return read_plain(file, most)
    except FileNotFoundError:
        raise
    except (NotPlain, ValueError) as error:
        raise DamagedRecords(file, str(error).removeprefix(str(file))) from error


def read_value(file: Path) -> Any:
    """Read a file that holds one JSON value, in JSON's own types; its fields are not checked."""
    from pydantic_core import from_json  # a twentieth of a second, which `--help` does not need

    content = read_bytes(file, MOST_JSON)
    try:
        value = from_json(content, allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # 1e999 is read as an infinite number
        return value
    except ValueError as error:
        raise DamagedRecords(file, f" is not JSON ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; its fields are not checked."""
    value = read_value(file)
    if not isinstance(value, dict):
        raise DamagedRecords(file, f" is damaged: must be a JSON object, got {brief(value)}")
    return value


def check(file: Path, value: Any, kind: Any) -> Any:
    """Check plain values of a file against a type; DamagedRecords names the first field that is wrong."""
    try:
        return _adapter(kind).validate_python(value)
    except ValueError as error:
        raise DamagedRecords(file, f" is damaged: {problem_of(error)}") from error


def check_json(file: Path, content: bytes, kind: Any) -> Any:
    """Check JSON of a file against a type, as `check` does; a list may become a tuple."""
    try:
        return _adapter(kind).validate_json(content)
    except ValueError as error:
        raise DamagedRecords(file, f" is damaged: {problem_of(error)}") from error


def parse_line(line: bytes, kind: type[T]) -> T:
    """Parse one line into a record; ValueError names the first field that is wrong."""
    if len(line) > MOST_LINE:
        raise ValueError(f"a line must have at most {MOST_LINE} bytes, got {len(line)}")
    record: T = _line_parser(cast(Hashable, kind))(line)
    return record


def split_lines(file: Path) -> tuple[list[bytes], bytes]:
    """Split a file into its complete lines and the rest, which is empty unless a crash cut the last one."""
    content = read_bytes(file, MOST_LINES)
    *lines, tail = (_unpack(file, content) if file.suffix == PACKED else content).split(b"\n")
    return lines, tail


def _unpack(file: Path, content: bytes) -> bytes:
    """Unpack what `gzip` packed; DamagedRecords for anything else, and for more than `MOST_LINES` bytes."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        lines = unpacker.decompress(content, MOST_LINES + 1)
    except zlib.error as error:
        raise DamagedRecords(file, f" is damaged: {error}") from error
    if len(lines) > MOST_LINES:
        raise DamagedRecords(file, f" has more than {MOST_LINES} bytes unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise DamagedRecords(file, " is damaged: it is cut short, or goes on after its end")
    return lines


def parse_lines(file: Path, lines: Sequence[bytes], kind: type[T]) -> Iterator[T]:
    """Parse lines into records; DamagedRecords names file, line and field."""
    for number, line in enumerate(lines, start=1):
        try:
            yield parse_line(line, kind)
        except ValueError as error:
            raise DamagedRecords(file, f":{number}: corrupt: {problem_of(error)}") from error


def problem_of(error: ValueError) -> str:
    """Word the first problem that a validator found: the field, what it must be, what it is."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors(include_url=False)[0]
    place = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    no_value = first["type"] in ("missing", "value_error", "json_invalid")
    got = "" if no_value else f", got {repr(first['input'])[:BRIEF]}"
    return f"{place.removeprefix('.')}: {message}{got}".removeprefix(": ")


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # as above

    return TypeAdapter(kind)


@cache
def _line_parser(kind: Hashable) -> Callable[[bytes], Any]:
    parse: Callable[[bytes], Any] = _adapter(kind).validate_json
    return parse
