"""The published numbers: `python -m eval.published TARGET` fetches weights, converts, evaluates, compares.

    python -m eval.published openpi_pi05_libero
    python -m eval.published lerobot_pi05_libero_finetuned --policy realtime --suites libero_spatial,libero_10
    python -m eval.published openpi_pi05_libero --source COPY --tokenizer FILE protocol=quick

The command says how much it will fetch, and refuses where the disk has no room. Each suite is a run of
`python -m eval` in a fresh process, of the official protocol. The same command again goes on with what is
left: files, conversion, suites, episodes. Its folder is a sweep's too: `python -m eval.report FOLDER` makes a
page of it.
"""

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eval.app.jobs.check import FindReasons, find_reasons, refusal
from eval.app.jobs.command import run_and_show, run_command
from eval.app.jobs.folder import owned
from eval.app.jobs.run import RunJob, has_finished, refuse_foreign_runs, run_jobs, run_process
from eval.app.jobs.typed import Typed
from eval.config.typed import keep_text, refuse_empty
from eval.published.fetch import Listing, Refused, fetch, list_wanted, refuse_too_large
from eval.published.runs import choose_runner, join_earlier, make_jobs, refuse_chosen
from eval.published.sources import Source, Unavailable, local_folder, open_source
from eval.published.table import read_outcomes, to_blocks, to_json_object
from eval.published.targets import SUITES, TARGETS, TOKENIZER_ABOUT, Target
from eval.published.weights import CONVERTED, convert, convert_bytes, fill_in, is_converted, list_tokenizer
from eval.records.schema import to_json
from eval.records.sweep import JobRecord, write_job_records
from eval.render.console import print_info, report_console
from eval.render.tables import to_console, to_markdown
from policies.files import OUTPUTS, path_argument, real_path, write_atomic
from policies.text import shell_command

SOURCE_RECORD = "source.json"
TABLE_FILES = ("published.md", "published.json")
NOT_READY = "not-ready"  # no folder: what is not whole is not read
GO_ON = "the same command goes on with it"


def main(
    arguments: Sequence[str] | None = None,
    run_job: RunJob = run_process,
    find_reasons: FindReasons = find_reasons,
) -> int:
    """Exit with 0 when all suites finished, else 1; 130 when interrupted."""
    options = _read_options(arguments)
    return run_command(partial(_publish, options, run_job, find_reasons), f"interrupted; {GO_ON}")


def _publish(options: argparse.Namespace, run_job: RunJob, find_reasons: FindReasons) -> int:
    target = TARGETS[options.target]
    folder = (options.folder or OUTPUTS / "published" / target.name).absolute()
    url = options.source or target.url
    refuse_empty(options.overrides)
    refuse_chosen(options.overrides)
    if options.tokenizer is not None and not options.tokenizer.is_file():
        raise Refused(
            f"--tokenizer: no file {str(options.tokenizer)!r} (looked at {real_path(options.tokenizer)})"
        )
    typed = Typed(config_dir=options.config_dir)
    with owned(folder):
        records = _prepare(target, url, folder, options, typed, find_reasons)
        left_out = {r.folder: "not among --suites" for r in records if r.folder not in options.suites}
        run_and_show(
            partial(run_jobs, folder, records, run_job, left_out, typed),
            partial(_write_tables, target, url, folder, records, typed),
            GO_ON,
        )
    return 0 if all(record.status == 0 for record in records if record.folder in options.suites) else 1


def _prepare(
    target: Target,
    url: str,
    folder: Path,
    options: argparse.Namespace,
    typed: Typed,
    find_reasons: FindReasons,
) -> list[JobRecord]:
    """Check everything, then fetch and convert what is missing; return the jobs, recorded in the folder."""
    source, place = open_source(url), local_folder(url) or folder / "source"
    loaded = folder / CONVERTED if target.is_jax else place
    overrides = keep_text([*choose_runner(options.overrides), *options.overrides])
    make = partial(make_jobs, target, options.suites, options.policy, typed)
    # Wrong values are refused before a server is asked.
    jobs = make(folder / NOT_READY, options.tokenizer, overrides)
    weights = _list_weights(target, source, place, folder, in_place=local_folder(url) is not None)
    tokenizer = list_tokenizer(folder, weights, options.tokenizer)
    wanted = [(source, weights), *([tokenizer] if tokenizer else [])]
    more_bytes = convert_bytes(target, folder, weights)
    refuse_too_large([listing for _, listing in wanted], folder, more_bytes)
    if any(listing.missing for _, listing in wanted) or not is_converted(target, folder):
        _refuse_what_cannot_run(folder, jobs, typed, find_reasons)
        for client, listing in wanted:
            fetch(client, listing)
        convert(target, folder, weights)
    tokenizer_file = tokenizer[1].paths[0] if tokenizer else options.tokenizer
    jobs = make(loaded, tokenizer_file, overrides, fill_in(target, loaded, tokenizer_file))
    records = join_earlier(target, folder, jobs)
    refuse_foreign_runs(folder, records, typed)
    _refuse_what_cannot_run(folder, jobs, typed, find_reasons)
    write_job_records(folder, records)
    return records


def _list_weights(target: Target, source: Source, place: Path, folder: Path, *, in_place: bool) -> Listing:
    record = folder / SOURCE_RECORD
    try:
        return list_wanted(source, place, record, target.files, target.needed, in_place=in_place)
    except Unavailable as error:
        raise Refused(
            f"{target.name} needs {target.about}, from {target.url}, and PaliGemma's tokenizer "
            f"({TOKENIZER_ABOUT}), but {error}; run this where there is a network, or give "
            "--source FOLDER_OR_URL with a copy and --tokenizer FILE"
        ) from error


def _refuse_what_cannot_run(
    folder: Path, jobs: Sequence[JobRecord], typed: Typed, find_reasons: FindReasons
) -> None:
    """Raise Refused, after printing the details, where this machine cannot run what is left."""
    left = [job.overrides for job in jobs if not has_finished(folder, job)]
    reasons = find_reasons(left, typed) if left else []
    if any(reason is not None for reason in reasons):
        details, line = refusal(left, reasons)
        print_info(details)
        raise Refused(line)


def _write_tables(target: Target, url: str, folder: Path, records: Sequence[JobRecord], typed: Typed) -> None:
    outcomes = read_outcomes(target, folder, records, typed)
    blocks = list(to_blocks(target, url, outcomes))
    write_atomic(folder / TABLE_FILES[0], to_markdown(blocks))
    write_atomic(
        folder / TABLE_FILES[1], to_json(to_json_object(target, url, outcomes), "published", indent=1)
    )
    report_console().print(to_console(blocks))
    print_info(f"tables: {', '.join(str(folder / name) for name in TABLE_FILES)}")
    print_info(f"a page of it: {shell_command('eval.report', shlex.quote(str(folder)))}")


def _suites(text: str) -> tuple[str, ...]:
    """Parse names with commas between them, into the published order."""
    names = text.split(",")
    if unknown := [name for name in names if name not in SUITES]:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(SUITES)}, got {', '.join(unknown)}")
    return tuple(suite for suite in SUITES if suite in names)


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.published",
        description="Fetch published weights, evaluate them on LIBERO's four suites, and compare.",
    )
    parser.add_argument("target", choices=sorted(TARGETS), help="which weights")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m eval")
    parser.add_argument(
        "--folder", type=path_argument, help="for files, runs and tables; default: outputs/published/<target>"
    )
    parser.add_argument(
        "--config-dir",
        type=path_argument,
        metavar="FOLDER",
        help="with YAML of your own, as for python -m eval",
    )
    parser.add_argument("--policy", default="baseline", help="as policy=... (%(default)s)")
    parser.add_argument(
        "--suites", type=_suites, default=SUITES, metavar="NAME,...", help="default: all four"
    )
    parser.add_argument(
        "--source", metavar="FOLDER_OR_URL", help="a copy of the published files, in the same form"
    )
    parser.add_argument(
        "--tokenizer", type=path_argument, metavar="FILE", help="PaliGemma's, where there is none"
    )
    return parser.parse_intermixed_args(arguments)
