"""What a run's end prints: the summary, the verdict, and the three commands that one runs next."""

import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from eval.analysis.summary import Summary, is_random
from eval.config.multiply import key_of
from eval.config.targets import is_guarded
from eval.records.folders import WANDB
from eval.records.run_json import is_decided, read_run_json
from eval.render.console import report_console
from eval.render.summary import render
from policies.text import shell_command, shell_override, visible

NEIGHBOURS = 20  # folders beside a run, the newest first, that are looked at for one to compare it with
SAME = ("suite", "protocol", "seed", "shard")  # of the configuration, where episodes can be paired
DIFFERENT = ("policy", "optim", "denoise", "clock")


def print_summary(summary: Summary | None, folder: Path) -> None:
    """Print a summary, where the records are, and what one runs next."""
    console = report_console()
    if summary:
        console.print(render(summary))
    console.print(Text(visible(f"records: {folder}")), soft_wrap=True)
    if summary:
        for command in next_commands(summary, folder):
            console.print(Text(f"  {visible(command)}", style="cyan"), soft_wrap=True)


def next_commands(summary: Summary, folder: Path) -> list[str]:
    """Spell three commands for a shell: the first goes on with an unfinished run, or compares another.

    They hold nothing of the records but the folders' names, and `KEY=...` for what a record may not say.
    """
    name = shlex.quote(str(folder))
    page = shell_command("eval.report", name)
    as_json = shell_command("eval.summary", name, "--json")
    run = _described(folder) or {}
    planned = summary.planned_episodes
    left = planned is not None and (summary.episodes < planned or summary.total.errors > 0)
    left = left and not is_decided(run)
    if left and not run.get("parts"):
        again = (shlex.quote(f"{key}=...") for key in _typed_again(run))
        return [shell_command("eval", shell_override("resume", str(folder)), *again), page, as_json]
    base = find_base(folder, run)
    if base is not None:
        return [shell_command("eval.compare", shlex.quote(str(base)), name), page, as_json]
    mirrored = (folder / WANDB).is_dir()
    return [
        page,
        as_json,
        shell_command("eval.wandb_sync", name) if mirrored else shell_command("eval", "--help"),
    ]


def _typed_again(run: Mapping[str, Any]) -> list[str]:
    """List the keys that whoever resumes a run types again: code, addresses, arguments."""
    return list(dict.fromkeys(key_of(text) for text in run.get("overrides") or [] if is_guarded(text)))


def find_base(folder: Path, run: Mapping[str, Any]) -> Path | None:
    """Find the last run that ended in a folder beside this one before it, and can be paired with it."""
    beside = (
        path for path in sorted(folder.absolute().parent.iterdir(), reverse=True) if path.name < folder.name
    )
    for path in itertools.islice(beside, NEIGHBOURS):
        if (other := _described(path)) and other.get("finished") and _pairs(other, run):
            return folder.parent / path.name
    return None


def _described(folder: Path) -> dict[str, Any] | None:
    try:
        return read_run_json(folder)
    except (OSError, ValueError):
        return None  # no run of ours; nothing is lost but a suggestion


def _pairs(base: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    same = [[run.get("config", {}).get(key) for key in SAME] for run in (base, new)]
    differ = [[run.get("config", {}).get(key) for key in DIFFERENT] for run in (base, new)]
    weights = {(run.get("policy") or {}).get("weights_sha256") for run in (base, new)}
    return (
        same[0] == same[1]
        and differ[0] != differ[1]
        and len(weights) == 1
        and not is_random(base.get("weights_label"))
    )
