"""The docs: links lead somewhere, commands parse, files that they name exist, tables say what conf/ says.

Commands of fenced `bash` blocks are parsed as their own command line would, in this process and without
running them: Hydra composes and checks, argparse parses. Reports in docs/results hold commands of their day;
only their links are checked.
"""

import argparse
import importlib
import importlib.util
import itertools
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from eval.app.command import CONF, Flags
from eval.config import schema
from eval.config.compose import configure
from eval.config.groups import options, recipe
from eval.config.multiply import choices, parse_overrides
from eval.serve.config import ServeRun
from eval.specs.choose import checked_spec
from eval.sweep.jobs import read_jobs
from optim.bench.config import read_arguments
from optim.calibrate import CalibrateRun
from optim.inspect import InspectRun
from policies.files import ROOT
from policies.pi05.dims import STAGES

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = ROOT / "examples"
EXAMPLE = EXAMPLES / "my_policy" / "README.md"
RESULTS = sorted((ROOT / "docs" / "results").rglob("*.md"))
CARD = ROOT / "policies" / "reference" / "README.md"
KEPT_UP = [*PAGES, CARD, EXAMPLE, *(page for page in RESULTS if page.name == "README.md")]  # no report
PROGRAMS = ("cd", "export", "git", "pre-commit")  # others' command lines, which nothing here can parse
CONFIG_KEYS = ("on_mismatch", "scales", *STAGES)  # `optim.KEY` is a key of the configuration, not a module

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+?)\s*$", re.MULTILINE)
NAMED_FILE = re.compile(r"(?:eval|examples/my_policy|optim|policies|conf|tests|tools|docs)/[\w./-]*")
NAMED_IN_FILE = re.compile(r"`(\w+)`\s+(?:of|in)\s+`([\w/]+\.py)`")
NAMED_MODULE = re.compile(r"(?:eval|optim|policies|tools)(?:\.(?!py\b)\w+)+")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """Read a page without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """Collect the anchors that GitHub gives a page's headings."""
    seen: dict[str, int] = {}
    page_anchors = set()
    for heading in HEADING.findall(prose(path)):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        page_anchors.add(f"{anchor}-{seen[anchor]}" if anchor in seen else anchor)
        seen[anchor] = seen.get(anchor, 0) + 1
    return page_anchors


def commands(text: str) -> Iterator[list[str]]:
    """Split the `bash` blocks into simple commands, each without the variables set before it."""
    for language, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
            lexer.whitespace_split = True
            for is_operator, words in itertools.groupby(lexer, lambda word: set(word) <= set("&|;")):
                command = list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words))
                if command and not is_operator:
                    yield command


COMMANDS = [
    (name(page), shlex.join(words)) for page in [*PAGES, EXAMPLE] for words in commands(page.read_text())
]


class Parsed(BaseException):
    """A command line was parsed; what the command would do next is not done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


@pytest.fixture(autouse=True)
def no_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    GlobalHydra.instance().clear()
    schema.register()
    schema.register_schema("calibrate", CalibrateRun)
    schema.register_schema("inspect", InspectRun)
    schema.register_schema("serve", ServeRun)
    monkeypatch.syspath_prepend(EXAMPLES)  # PYTHONPATH of commands with a policy of its own

    def stop(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
        def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
            raise Parsed(parse(self, *args, **kwargs))

        return parse_and_stop

    for method in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, stop(getattr(argparse.ArgumentParser, method)))


def parse_hydra(config_name: str, words: Sequence[str]) -> None:
    """Compose and check each job of a command line of Hydra's."""
    Flags(config_name, [get_args_parser()]).check(words)
    flags, _ = get_args_parser().parse_known_args(list(words))
    lists = [[text] for text in flags.overrides]
    if flags.multirun:
        lists = [choices(override) for override in parse_overrides(flags.overrides)]
    before = [f"hydra.searchpath=[{ROOT / flags.config_dir}]"] if flags.config_dir else []
    if {"resume", "policy._target_"} <= {text.partition("=")[0] for text in flags.overrides}:
        before.append("policy=custom")  # as the record has it
    with initialize_config_dir(config_dir=CONF, version_base="1.3"):
        for job in itertools.product(*lists):
            config: Any = OmegaConf.to_object(compose(config_name, [*before, *job]))
            if config_name == "config":
                checked_spec(config, list(job))


def parse_bench(words: Sequence[str]) -> None:
    Flags("bench").refuse_flags(words)
    read_arguments(words)


def parse_module(module: str, words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a module with its own argparse, which it calls as `python -m MODULE`."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", [module, *words])
        warnings.filterwarnings(
            "ignore", "'.*' found in sys.modules", RuntimeWarning
        )  # it was imported before
        with pytest.raises(Parsed) as parsed:
            runpy.run_module(module, run_name="__main__")
    return parsed.value.options


def parse_python(module: str, words: Sequence[str]) -> None:
    """Parse the arguments of `python -m MODULE`."""
    if module == "optim.bench":
        return parse_bench(words)
    if module in ("eval", "eval.serve", "optim.calibrate", "optim.inspect"):
        return parse_hydra("config" if module == "eval" else module.rpartition(".")[2], words)
    parsed = parse_module(module, words)
    if module == "eval.replay":
        configure(parsed.overrides)
    if module == "eval.sweep" and parsed.resume is None:
        folders = [ROOT / parsed.config_dir] if parsed.config_dir else []
        assert read_jobs(parsed.overrides, one_at_a_time=parsed.one_at_a_time, folders=folders)
    return None


def parse_ray(words: Sequence[str]) -> None:
    cli = pytest.importorskip("ray.scripts.scripts").cli
    command, *rest = words
    cli.commands[command].make_context(command, rest)


def parse_pip(words: Sequence[str]) -> None:
    """Check that the extras exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"\[(.*?)\]", " ".join(words)):
        assert set(named.split(",")) <= set(extras), named


def parse(words: Sequence[str]) -> None:
    """Parse one command, or fail."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "python":
        assert rest[:1] == ["-m"], f"python without a module: {shlex.join(words)}"
        parse_python(rest[1], rest[2:])
    elif program == "libero-eval":
        parse_python("eval", rest)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), words
        for arguments in (word.removeprefix("ARGS=") for word in rest if word.startswith("ARGS=")):
            if "eval" in rest:
                parse_python("eval", shlex.split(arguments))
    elif program in ("pip", "ray"):
        {"pip": parse_pip, "ray": parse_ray}[program](rest)
    else:
        assert program in PROGRAMS or (ROOT / program).is_file(), f"unknown program {program}"


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_the_docs_parses(page: str, command: str) -> None:
    parse(shlex.split(command))


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python -m eval nothing=1", "nothing"),
        ("python -m eval policy=nothing", "nothing"),
        ("python -m eval seed=-1", "seed must be"),
        ("python -m eval seed=1,2", "--multirun"),
        ("python -m eval runner.workers=4", "add runner=ray"),
        ("python -m eval -m seed=1,2 policy=nothing,oracle", "nothing"),
        ("python -m eval --nothing", "unknown flag --nothing"),
        ("libero-eval --nothing", "unknown flag --nothing"),
        ("python -m eval.nothing", "No module named"),
        ("python -m eval.summary RUN --nothing", "unrecognized arguments: --nothing"),
        ("python -m eval.compare BASE", "required: NEW"),
        ("python -m eval.sweep policy=oracle,nothing", "nothing"),
        ("python -m eval.replay RUN policy=nothing", "nothing"),
        ("python -m optim.bench rounds=0", "bench.rounds must be"),
        ("python -m optim.calibrate calibrate.count=1", "calibrate.count must be"),
        ("python -m optim.inspect inspect.nothing=1", "nothing"),
        ("python -m eval.serve server.protocol=nothing", "server.protocol must be"),
        ("python eval/cli.py", "eval/cli.py"),
        ("make nothing", "nothing"),
        ("make eval ARGS=nothing=1", "nothing"),
        ("pip install .[nothing]", "nothing"),
        ("nothing", "unknown program nothing"),
    ],
)
def test_a_command_that_is_wrong_does_not_parse(
    command: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((Exception, SystemExit)) as raised:
        parse(shlex.split(command))
    assert error in f"{raised.value} {capsys.readouterr().err}"


def test_commands_are_read_with_variables_comments_and_line_ends() -> None:
    text = "```bash\nA=1 python -m x 'b c' \\\n  d  # e\nexport F=2 && make g &\n```\n```text\nmake h\n```\n"
    assert list(commands(text)) == [["python", "-m", "x", "b c", "d"], ["export", "F=2"], ["make", "g"]]


@pytest.mark.parametrize("page", [*PAGES, CARD, EXAMPLE, *RESULTS], ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for link in LINK.findall(INLINE.sub("", prose(page))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", KEPT_UP, ids=name)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    inline = INLINE.findall(prose(page))
    files = [text for text in inline if NAMED_FILE.fullmatch(text)]
    modules = [text for text in inline if NAMED_MODULE.fullmatch(text)]
    missing = [text for text in files if not (ROOT / text).exists()]
    missing += [text for text in modules if not is_named(text)]
    assert not missing


@pytest.mark.parametrize("page", KEPT_UP, ids=name)
def test_what_a_page_says_to_be_in_a_file_is_there(page: Path) -> None:
    named = NAMED_IN_FILE.findall(prose(page))
    assert [pair for pair in named if pair[0] not in (ROOT / pair[1]).read_text()] == []


def is_named(dotted: str) -> bool:
    """Whether a dotted name is a module, something in one, or a key of the configuration."""
    package, first, *rest = dotted.split(".")
    if package == "optim" and first in CONFIG_KEYS:
        return True
    value: Any = importlib.import_module(package)
    for part in (first, *rest):
        path = f"{value.__name__}.{part}" if hasattr(value, "__path__") else ""
        if path and importlib.util.find_spec(path) is not None:
            value = importlib.import_module(path)
        elif hasattr(value, part):
            value = getattr(value, part)
        else:
            return False
    return True


def test_the_readme_has_120_to_150_lines() -> None:
    assert 120 <= len(README.read_text().splitlines()) <= 150


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(prose(README))}
    assert {page for page in PAGES if page != README} <= linked


def test_the_drawing_has_the_rooms_of_the_import_contract_in_its_order() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    drawing = "".join(block for _, block in FENCE.findall((ROOT / "docs" / "architecture.md").read_text()))
    last = -1
    for layer in contract["layers"]:
        paths = [ROOT / room.strip().replace(".", "/") for room in layer.split("|")]
        rooms = [f"{name(path)}/" if path.is_dir() else f"{name(path)}.py" for path in paths]
        places = [drawing.find(room) for room in rooms]
        assert min(places) > last, f"{rooms} must all be in the drawing, below the layer before"
        last = max(places)


def rows(page: str, header: str) -> dict[str, list[str]]:
    """Read the cells of each row of a page's table, by its first cell."""
    table = (ROOT / "docs" / page).read_text().partition(f"\n{header}\n")[2].partition("\n\n")[0]
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in table.splitlines()[1:]]
    return {first: rest for first, *rest in cells}


def test_the_table_of_policies_says_what_each_policy_is_made_of() -> None:
    table = rows(
        "policies-and-backends.md", "| `policy=` | `policy.images` | vision | prefix | denoise | needs |"
    )
    made_of = {}
    for policy in options("policy"):
        named = recipe(policy)
        images = named.get("images", "eager") if named else "-"
        made_of[policy] = [images, *(named.get(stage, "-") for stage in STAGES)]
    assert {policy: cells[:-1] for policy, cells in table.items()} == made_of


def test_the_table_of_backends_says_which_stages_each_serves() -> None:
    table = rows("policies-and-backends.md", "| backend | serves | what it does |")
    serves: dict[str, list[str]] = {}
    for stage in STAGES:
        for backend in options(f"optim/{stage}"):
            serves.setdefault(backend, []).append(stage)
    assert {backend: cells[0].split(", ") for backend, cells in table.items()} == serves
