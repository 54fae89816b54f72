"""What a command line says itself, where the overrides of its jobs come from a record: a sweep's, resumed.

A record is data: it names no code, no server and no mirror. Those are typed again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.config.compose import configure
from eval.config.multiply import choices, is_below, key_of, parse_overrides
from eval.config.schema import Config, ConfigError
from eval.config.targets import TRACKING, is_guarded, repeatable
from eval.config.typed import keep_text
from policies.text import shorten


@dataclass(frozen=True)
class Typed:
    """What is typed on top of jobs.

    Attributes:
        overrides: on top of recorded jobs: `KEY._target_=PATH` and the like, which a job may then name, and
            `tracking...` for all of them; None where nothing of a job comes from a record.
        config_dir: a folder with YAML of the user's own, as `python -m eval --config-dir` takes it.
    """

    overrides: tuple[str, ...] | None = None
    config_dir: Path | None = None

    @property
    def folders(self) -> list[Path]:
        return [] if self.config_dir is None else [self.config_dir]

    @property
    def flags(self) -> list[str]:
        """The flags with which a job finds what its command found."""
        return [] if self.config_dir is None else ["--config-dir", str(self.config_dir)]

    def whole(self, recorded: Sequence[str]) -> list[str]:
        """The overrides that a job is composed from."""
        if self.overrides is None:
            return list(recorded)
        return [*repeatable(recorded, ()), *self._tracking]

    def of_job(self, recorded: Sequence[str]) -> list[str]:
        """The overrides of a job that a record may not choose, and this command line says."""
        if self.overrides is None:
            return [text for text in recorded if is_guarded(text)]
        allowed = _pairs(self.overrides)
        named = [text for text in recorded if is_guarded(text) and _pairs([text]) <= allowed]
        return [*named, *self._tracking]

    def configure(self, recorded: Sequence[str]) -> Config:
        """Compose and check a job; ConfigError, among others, for what its record alone says."""
        typed = None if self.overrides is None else self.of_job(recorded)
        return configure(self.whole(recorded), typed, self.folders)

    def refuse_useless(self, jobs: Iterable[Sequence[str]]) -> None:
        """Raise ConfigError for a typed override that is none to be typed, or that no job names."""
        recorded = [text for job in jobs for text in job if is_guarded(text)]
        for text in self.overrides or ():
            key = key_of(text)
            if is_below(key, [TRACKING]):
                continue
            if not is_guarded(text):
                raise ConfigError(
                    f"{text} would change recorded jobs; with --resume only KEY._target_=PATH, what names a "
                    "server, arguments of a policy that are no numbers, and tracking... are typed"
                )
            if not _pairs([text]) <= _pairs(recorded):
                named = shorten(dict.fromkeys(recorded)) or "nothing of the kind"
                raise ConfigError(f"no recorded job has {text}; they name {named}")

    @property
    def _tracking(self) -> list[str]:
        return [text for text in self.overrides or () if is_below(key_of(text), [TRACKING])]


NOTHING = Typed()


def _pairs(overrides: Sequence[str]) -> set[tuple[str, str]]:
    """Keys with their values, each of a list by itself."""
    texts = [text for override in parse_overrides(keep_text(overrides)) for text in choices(override)]
    return {(key_of(override), str(override.value())) for override in parse_overrides(texts)}
