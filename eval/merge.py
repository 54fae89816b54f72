"""Join parts of a run: `python -m eval.merge PART PART ... [--out FOLDER]` writes one folder and its summary.

Parts are shards, or runs over other tasks or episodes; everything else must be the same in all of them.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.analysis.summary import summarise
from eval.app.ending import print_summary
from eval.records.engagement import join
from eval.records.episodes import Episodes
from eval.records.folders import refuse_kept
from eval.records.reader import Run, read_run
from eval.records.resume import FREE, WHICH_EPISODES, origin_changes, recorded, refuse_changed
from eval.records.schema import EpisodeRecord, InferenceRecord
from eval.records.writer import RecordingError, RunWriter
from eval.render.console import print_error
from policies.base import EpisodeKey
from policies.files import path_argument
from policies.text import pluralize

Attempt = tuple[EpisodeRecord, Sequence[InferenceRecord]]


@dataclass(frozen=True)
class Joined:
    """The records of all parts, each episode once.

    Attributes:
        attempts: episodes with their inferences; of each key the errors that were replaced come first.
        duplicates: episodes that more than one part had finished.
        different: those of them whose success, steps, actions or initial state differ between the parts.
    """

    attempts: Sequence[Attempt]
    duplicates: Sequence[EpisodeKey]
    different: Sequence[EpisodeKey]


def join_records(runs: Iterable[Run]) -> Joined:
    """Keep every episode once: as the first part that finished it has it, else the last error.

    Non-obvious behaviors:
        The inferences of an attempt that a part itself replaced are not kept, so its record says 0.
    """
    attempts: defaultdict[EpisodeKey, list[Attempt]] = defaultdict(list)
    for run in runs:
        inferences: defaultdict[EpisodeKey, list[InferenceRecord]] = defaultdict(list)
        for inference in run.inferences:
            inferences[inference.key].append(inference)
        for error in run.superseded:
            attempts[error.key].append((replace(error, inferences=0), ()))
        for episode in run.episodes:
            attempts[episode.key].append((episode, inferences[episode.key]))
    joined: list[Attempt] = []
    duplicates, different = [], []
    for key, tries in sorted(attempts.items()):
        finished = [attempt for attempt in tries if attempt[0].success is not None]
        joined += [attempt for attempt in tries if attempt[0].success is None] + finished[:1]
        if len(finished) > 1:
            duplicates.append(key)
        if len({_result(episode) for episode, _ in finished}) > 1:
            different.append(key)
    return Joined(joined, duplicates, different)


def _result(episode: EpisodeRecord) -> tuple[Any, ...]:
    return episode.success, episode.steps, episode.actions_sha256, episode.initial_state_sha256


def merge(folders: Sequence[Path], out: Path) -> list[str]:
    """Write the parts as one run into `out` and return what must be known of it.

    Raises:
        FileExistsError: `out` holds records.
        FileNotFoundError, ValueError: a part is no run.
        Changed: the parts are not of one run.
        RecordingError: the disk refuses.
    """
    runs: list[Run] = []
    for folder in folders:
        described = recorded(folder)
        if described.get("stop"):
            raise ValueError(
                f"{folder} ends with its own decision (stop=decided), and is no part of another run"
            )
        refuse_kept(folder)
        if runs:
            refuse_changed(folder, runs[0].run, described, (*FREE, *WHICH_EPISODES))
        runs.append(read_run(folder))
    joined = join_records(runs)
    notes = [note for run in runs for note in run.run.get("notes", [])]
    notes += [
        f"{folder}: {change}"
        for folder, run in zip(folders[1:], runs[1:], strict=True)
        for change in origin_changes(runs[0].run["provenance"], run.run["provenance"])
    ]
    if joined.duplicates:
        notes.append(f"{pluralize(len(joined.duplicates), 'episode')} in several parts, counted once")
    if joined.different:
        notes.append(
            f"{len(joined.different)} of them with another result in a later part, the first part counts: "
            f"{', '.join(map(str, joined.different))}"
        )
    with RunWriter(out) as writer:
        for episode, inferences in joined.attempts:
            for inference in inferences:
                writer.add_inference(inference)
            writer.add_episode(episode)
        writer.write_run(joined_run(folders, runs, notes))
    return notes


def joined_run(folders: Sequence[Path], runs: Sequence[Run], notes: Sequence[str]) -> dict[str, Any]:
    """run.json of the whole: the first part's, with what adds up added up."""
    plans = {Episodes.from_dict(plain).whole() for run in runs for plain in run.run["episodes"]}
    kept = ("provenance", "overrides", "runner", "finished", "planned_episodes", "resumed")
    errors = {
        key: "; ".join(str(run.run[key]) for run in runs if run.run.get(key)) or None
        for key in ("tracking_error", "video_error")
    }
    parts = [
        {"folder": str(folder), **{key: run.run.get(key) for key in kept}, "parts": run.run.get("parts", [])}
        for folder, run in zip(folders, runs, strict=True)
    ]
    return {
        **runs[0].run,
        **errors,
        "episodes": [plan.to_dict() for plan in sorted(plans, key=str)],
        "planned_episodes": len({key for plan in plans for key in plan.keys()}),  # noqa: SIM118  no mapping
        "finished": all(run.run.get("finished") for run in runs),
        "engagement": join(run.run.get("engagement") or {} for run in runs),
        "notes": list(notes),
        "parts": parts,
        "wandb_id": None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Join the parts and print the summary; return 1 with one line on stderr when they cannot be joined."""
    parser = argparse.ArgumentParser(prog="python -m eval.merge", description="Join the parts of a run.")
    parser.add_argument("parts", type=path_argument, nargs="+", metavar="PART", help="folder of a run")
    parser.add_argument(
        "--out", type=path_argument, help="new folder for the whole; default: outputs/<date>/<time>_merged"
    )
    options = parser.parse_args(arguments)
    now = datetime.now().astimezone()
    out = options.out or Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S-%f}_merged")
    try:
        merge(options.parts, out)
        summary = summarise(read_run(out))
    except (OSError, ValueError, RecordingError) as error:
        print_error(error)
        return 1
    print_summary(summary, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
