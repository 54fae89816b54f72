"""What every command line of the project shares: Hydra's configuration, and errors on one line.

Non-obvious behaviors:
    `hydra._internal` lends its parser of flags, for which Hydra has no public name. pyproject.toml pins
    hydra-core below 1.4, and tests/eval/test_bad_input.py tests the messages.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.app.completion import SCRIPT
from eval.config import groups, schema
from eval.config.errors import one_line
from eval.config.schema import ConfigError
from eval.config.typed import keep_text, refuse_unknown, refuse_unread
from eval.episodes.signals import exit_status, noticed, raise_pending
from eval.records.writer import RecordingError
from eval.render.console import FULL_ERROR, print_error, print_info
from eval.runners.recorder import RunFailed
from policies.files import search_current_folder_last
from policies.streams import surviving_readers


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, except that a wrong command line exits with `os.EX_USAGE`: 2 means "not comparable"."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: error: {message}\n")


CONF = str(groups.CONF)  # absolute: Hydra would look for a relative path beside the caller's file


class CommandError(RuntimeError):
    """The command could not start; the message is one readable line."""


USER_ERRORS = (CommandError, RunFailed, RecordingError, OSError)


ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")  # flags of Hydra's that exclude each other


class Flags(argparse.ArgumentParser):
    """The flags of a command line; a wrong one is one line and exit status 2.

    Args:
        config_name: the file in conf/ that the command composes; its `hydra.help.app_name` names the command.
        parents: parsers that know flags.
    """

    def __init__(self, config_name: str, parents: Sequence[argparse.ArgumentParser] = ()) -> None:
        name = OmegaConf.load(Path(CONF, f"{config_name}.yaml")).hydra.help.app_name
        super().__init__(prog=name, parents=list(parents), add_help=False)

    def check(self, words: Sequence[str]) -> argparse.Namespace:
        """Exit unless all flags are known, go together, and do not separate the `key=value`; return them."""
        options, rest = self.parse_known_args(words)
        self.refuse_flags(rest)
        if rest:
            self.error(f"{' '.join(rest)} must stand with the other KEY=VALUE, without a flag between them")
        chosen = [f"--{flag.replace('_', '-')}" for flag in ONE_OF if getattr(options, flag)]
        if len(chosen) > 1:
            self.error(f"{' and '.join(chosen)} exclude each other")
        return options

    def refuse_flags(self, words: Sequence[str]) -> None:
        """Exit if there are flags among the words."""
        if flags := [word for word in words if word.startswith("-")]:
            self.error(f"unknown flag {', '.join(flags)}")

    def error(self, message: str) -> NoReturn:
        print_error(f"{message}; `{self.prog} --help` explains keys and flags")
        self.exit(2)


def command(config_name: str, run: Callable[[DictConfig], None]) -> None:
    """Run a command line.

    User errors are one line and exit status 1, wrong flags exit with 2, signals as in
    `eval.episodes.signals.exit_status`. HYDRA_FULL_ERROR=1 shows the whole trace. A reader of stdout or
    stderr that goes away changes neither the run nor its status.

    Args:
        config_name: the file in conf/ that it composes.
        run: does the work of one job; the other jobs of a sweep go on when it raises one of `USER_ERRORS`.
    """
    search_current_folder_last()
    options = Flags(config_name, [get_args_parser()]).check(sys.argv[1:])  # Hydra would print all its usage
    schema.register()
    if options.shell_completion and options.overrides == ["install=bash"]:
        sys.stdout.write(SCRIPT)
        return
    if options.config_dir:
        _list_options_of(Path(options.config_dir))
    before = os.environ.get(FULL_ERROR)
    full_trace = before == "1"
    failed = []

    def job(cfg: DictConfig) -> None:
        schema.register()  # a launcher may have started another process
        try:
            _refuse_unknown(cfg)
            run(cfg)
        except Exception as error:
            raise_pending(error)
            if not isinstance(error, USER_ERRORS) or full_trace or not _is_here():
                raise
            print_error(error)
            failed.append(error)
        finally:
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))

    os.environ[FULL_ERROR] = "1"  # Hydra would print and exit by itself
    try:
        with surviving_readers(), noticed():
            _compose_and_run(config_name, job, options, full_trace=full_trace)
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before
    if failed:
        sys.exit(1)


def _list_options_of(folder: Path) -> None:
    """Let `--help` list what a user's folder adds to each group."""
    OmegaConf.register_new_resolver(
        "options", lambda group: ", ".join(groups.options(group, [folder])), replace=True
    )


def _compose_and_run(
    config_name: str, job: Callable[[DictConfig], None], options: argparse.Namespace, *, full_trace: bool
) -> None:
    try:
        _read_typed(options, has_folder=config_name == "config")
        hydra.main(config_path=CONF, config_name=config_name, version_base="1.3")(job)()
        raise_pending()  # a signal that a library swallowed after the last step
    except (HydraException, OmegaConfBaseException, *USER_ERRORS) as error:
        if full_trace:
            raise
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print_info("interrupted; what was recorded is kept")
        sys.exit(exit_status(interrupt))


def _refuse_unknown(cfg: DictConfig) -> None:
    try:
        refuse_unknown(cfg)
    except (ConfigError, OmegaConfBaseException) as error:
        raise CommandError(one_line(error)) from error


def _read_typed(options: argparse.Namespace, *, has_folder: bool) -> None:
    """Let Hydra read texts as texts; CommandError for what it would ignore."""
    several_jobs = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
    try:
        refuse_unread(options.overrides, several_jobs=several_jobs, has_folder=has_folder)
    except ConfigError as error:
        raise CommandError(str(error)) from error
    sys.argv[1:] = keep_text(sys.argv[1:])


def _is_here() -> bool:
    """Whether jobs run in this process, so that it knows which failed."""
    return str(HydraConfig.get().launcher["_target_"]).endswith(".BasicLauncher")


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
