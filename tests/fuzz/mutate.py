"""Change valid files: bytes, values of JSON, arrays of a .npz, at random but repeatable."""

import io
import json
import zipfile
from collections.abc import Iterator
from random import Random
from typing import Any

CANARY = "canary_of_a_record"  # a module that nothing may import
RAW = "a number that json cannot write"
NUMBERS = ("1" + "0" * 400, "NaN", "-Infinity", "1e999", "-0", "1" + "0" * 5000)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, -5, 1, 3.5, 1e308, 2**63, 2**64, 2**31, 10**9, "", "yes", "0", "a\nb"),
    *(
        "\x1b[2J\x9b31m",
        "\u202eb",
        "<img src=x>",
        "../x",
        "/etc/passwd",
        "..",
        "\x00",
        "a" * 5000,
        "libero_10",
    ),
    *([], [1], [[]], ["a"], {}, {"a": 1}, {"_target_": f"{CANARY}.run"}, [{"_target_": f"{CANARY}.run"}]),
    *("${oc.env:HOME}", f"optim.vision._target_={CANARY}.run", "hydra.run.dir=/tmp/x", "success", "error"),
    *("1/4", "9/4", "0/0", "٣/٤"),
)
KEYS = ("new", "format", "_target_", "", "a\x1b", "finished", "parts", "overrides")


def mutate(content: bytes, random: Random) -> bytes:
    """Change a file once or a few times."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        change = random.choice((_bytes, _values, _values, _values, _arrays))
        content = change(content, random)
    return content


def _bytes(content: bytes, random: Random) -> bytes:
    place = random.randrange(len(content) + 1)
    end = min(len(content), place + random.choice((1, 2, 8, 100)))
    kind = random.randrange(6)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[end:]
    if kind == 2:
        return content[:end] + content[place:]
    if kind == 3:
        return content[:place] + random.randbytes(random.choice((1, 4, 64))) + content[place:]
    if kind == 4:
        return content[:place] + bytes(end - place) + content[end:]
    return (
        content[:place]
        + bytes(byte ^ 1 << random.randrange(8) for byte in content[place:end])
        + content[end:]
    )


def _values(content: bytes, random: Random) -> bytes:
    """Change a value of JSON, or of one line of several; bytes where there is no JSON."""
    try:
        return _change_value(json.loads(content), random)
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    if not lines or b"{" not in content[:1]:
        return _bytes(content, random)
    i = random.randrange(len(lines))
    if random.random() < 0.15:
        j = random.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
        return b"\n".join(lines)
    if random.random() < 0.1:
        return b"\n".join([*lines[:i], lines[i], *lines[i:]])
    try:
        lines[i] = _change_value(json.loads(lines[i]), random)
    except (ValueError, RecursionError):
        return _bytes(content, random)
    return b"\n".join(lines)


def _change_value(value: Any, random: Random) -> bytes:
    places = list(_places(value))
    if not places:
        return json.dumps(random.choice(VALUES)).encode()
    parent, key = random.choice(places)
    kind = random.random()
    if kind < 0.1:
        del parent[key]
    elif kind < 0.2 and isinstance(parent, dict):
        parent[random.choice(KEYS)] = random.choice(VALUES)
    elif kind < 0.25:
        depth = random.choice((50, 150, 500, 100_000))
        parent[key] = RAW
        return json.dumps(value).replace(json.dumps(RAW), "[" * depth + "]" * depth).encode()
    elif kind < 0.4:
        parent[key] = RAW
        return json.dumps(value).replace(json.dumps(RAW), random.choice(NUMBERS)).encode()
    else:  # often of the same type, which a reader looks at more closely
        alike = [item for item in VALUES if type(item) is type(parent[key])]
        parent[key] = random.choice(alike if alike and random.random() < 0.6 else VALUES)
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _arrays(content: bytes, random: Random) -> bytes:
    """Change the bytes of one member of a ZIP, whose checksum fits again; bytes of any other file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # noqa: BLE001  zipfile raises whatever a changed file leads it to
        return _values(content, random)
    if not members:
        return _bytes(content, random)
    name = random.choice(sorted(members))
    kind = random.random()
    if kind < 0.1:
        del members[name]
    elif kind < 0.2:
        members[random.choice(("state.npy", "more.npy", "images/x.npy", "../x.npy", "x"))] = members[name]
    elif kind < 0.6:
        head = members[name][:128]
        members[name] = head[:10] + _bytes(head[10:], random) + members[name][128:]
    else:
        members[name] = _bytes(members[name], random)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return out.getvalue()
