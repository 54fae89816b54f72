"""What a server did: a file, and a table."""

from array import array
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from eval.records.schema import to_json
from eval.render.tables import LINE, NONE, Block, Row, Sentence, Table, to_console
from eval.serve.session import Session, describe, stats_of
from policies.files import write_atomic

LATENCY = ("", "inferences", "infer p50 ms", "p95", "in and out p50 ms", "p95")
ENGAGEMENT = ("stage", "backend", "calls", "misses", "refused")
SHOWN = 20  # clients in the table; all are in the file


def write(path: Path, facts: Mapping[str, Any], sessions: Sequence[Session]) -> None:
    """Write the record; OSError where that fails."""
    content = {
        **facts,
        "clients": [session.to_dict() for session in sessions],
        "infer": describe(pooled(sessions, "infer_ms")),
        "total": describe(pooled(sessions, "total_ms")),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(content, "serve"))


def default_path(now: datetime) -> Path:
    return Path("outputs", "serve", f"{now:%Y-%m-%d_%H-%M-%S-%f}.json")


def pooled(sessions: Sequence[Session], name: str) -> "array[float]":
    """Join the latencies of all clients."""
    joined = array("d")
    for session in sessions:
        joined.extend(getattr(session, name))
    return joined


def render(sessions: Sequence[Session], engagement: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """For a console; texts from clients are never read as its markup."""
    blocks: list[Block] = []
    busy = [session for session in sessions if session.infer_ms]
    if busy:
        rows: list[Row] = [
            _latency(session.name, session.infer_ms, session.total_ms) for session in busy[:SHOWN]
        ]
        hidden = f"; {len(busy) - SHOWN} more are in the record" if len(busy) > SHOWN else ""
        total = _latency("all", pooled(busy, "infer_ms"), pooled(busy, "total_ms"))
        caption = f"Latency: of the policy, and from a whole message to its answer{hidden}"
        blocks.append(Table(LATENCY, [*rows, LINE, total], caption))
    else:
        blocks.append(Sentence("nobody asked for an action"))
    if engagement:
        names = ENGAGEMENT[1:]
        stages = [
            (stage, *(str(served.get(name, 0)) for name in names)) for stage, served in engagement.items()
        ]
        blocks.append(Table(ENGAGEMENT, stages, "Engagement"))
    return to_console(blocks)


def _latency(name: str, infer_ms: "array[float]", total_ms: "array[float]") -> Row:
    infer, total = stats_of(infer_ms), stats_of(total_ms)
    cells = [str(len(infer_ms))]
    for stats in (infer, total):
        cells += [NONE, NONE] if stats is None else [f"{stats.p50_ms:.2f}", f"{stats.p95_ms:.2f}"]
    return (Text(name), *cells)
