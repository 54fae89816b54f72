"""Old runs in today's form: `python -m tools.convert_runs PART... --out RUN --left-out WHY` writes one run.

The first runs that were committed are ten of one task each, recorded before run.json said which episodes were
planned, and without their inferences, which `eval.merge` refuses. Here they become one run that says so.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.merge import joined_run
from eval.records.episodes import Episodes
from eval.records.folders import EPISODES_FILE, INFERENCES_FILE, LEFT_OUT, RUN_FILE
from eval.records.reader import Run
from eval.records.resume import FREE, WHICH_EPISODES, origin_changes, refuse_changed
from eval.records.schema import EpisodeRecord
from eval.render.console import print_error


def convert(parts: Sequence[Path], out: Path, left_out: str) -> None:
    """Write the parts as one run; lines of episodes stay as they are.

    Args:
        left_out: why there are no inferences.

    Raises:
        OSError, ValueError: a part holds inferences or lacks episodes, or the parts are not of one run.
    """
    runs, lines = [], b""
    for part in parts:
        if (part / INFERENCES_FILE).exists():
            raise ValueError(f"{part} has inferences; join such parts with eval.merge")
        run = json.loads((part / RUN_FILE).read_bytes())
        run = {**run, "episodes": run.get("episodes") or [_planned(run).to_dict()], LEFT_OUT: left_out}
        text = (part / EPISODES_FILE).read_bytes()
        episodes = tuple(EpisodeRecord(**json.loads(line)) for line in text.splitlines())
        planned = [key for plan in run["episodes"] for key in Episodes.from_dict(plan).keys()]  # noqa: SIM118  no mapping
        if sorted(planned) != sorted(episode.key for episode in episodes):
            raise ValueError(f"{part} does not hold each planned episode once")
        runs.append(Run(run, episodes, ()))
        refuse_changed(part, runs[0].run, run, (*FREE, *WHICH_EPISODES))
        if changes := origin_changes(runs[0].run["provenance"], run["provenance"]):
            raise ValueError(f"{part} has another origin than {parts[0]}: {changes[0]}")
        lines += text
    whole = dict(runs[0].run)
    if len(runs) > 1:
        whole = joined_run([Path(part.name) for part in parts], runs, notes=[])
        for recorded, part_run in zip(whole["parts"], runs, strict=True):
            recorded |= {key: part_run.run[key] for key in ("engagement", "first_frame_sha256")}
    out.mkdir(parents=True)
    (out / EPISODES_FILE).write_bytes(lines)
    (out / RUN_FILE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def _planned(run: dict[str, Any]) -> Episodes:
    """Plan the episodes that a run's configuration names."""
    suite, protocol = run["config"]["suite"], run["config"]["protocol"]
    tasks = suite["tasks"] if suite["tasks"] is not None else range(protocol["num_tasks"])
    first, count = protocol["first_episode"], protocol["episodes"]
    return Episodes(suite["name"], tuple(tasks), first, count, run["config"]["seed"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the run; return 1 with one line on stderr when the parts are not as they must be."""
    parser = argparse.ArgumentParser(prog="python -m tools.convert_runs", description="Convert old runs.")
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART", help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="new folder for the whole")
    parser.add_argument("--left-out", required=True, metavar="WHY", help="why there are no inferences")
    options = parser.parse_args(arguments)
    try:
        convert(options.parts, options.out, options.left_out)
    except (OSError, ValueError) as error:
        print_error(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
