"""Build the policies of a replay: the run's own in eager PyTorch, and the one that overrides name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.analysis.comparable import NotComparable
from eval.config.compose import configure
from eval.config.multiply import is_below, key_of
from eval.config.targets import repeatable
from eval.records import run_json
from eval.records.folders import RUN_FILE
from eval.records.observations import require_cameras
from eval.records.recording import Sample
from eval.records.resume import current_overrides, portable
from eval.replay.parity import Subjects
from eval.specs.choose import make_spec
from eval.specs.pi05_build import choose_backends, eager_policy, load, optimise
from policies.pi05.denoise import Denoise
from policies.pi05.shipped_before import how_to_get

# The overrides of a run that make its policy; `policy=` replaces RECIPE and the backends.
RECIPE = ("policy", "policy.name", "policy.prompt_multiple", "policy.images")
GROUPS = ("checkpoint", "policy", "optim", "denoise", "experiment")
# Facts of run.json that the rebuilt reference must have too, or it is another policy.
FACTS = (
    "weights_sha256",
    "norm_stats_sha256",
    "tokenizer_sha256",
    "norm_mode",
    "state_in_prompt",
    "horizon",
    "form",
    "dtype",
    "denoise_steps",
    "settings",
)
OF_THE_WEIGHTS = FACTS[:6]


def read_run_json(folder: Path) -> dict[str, Any]:
    """Read run.json; NotComparable unless it says how a policy with a network was made."""
    try:
        run = run_json.read_run_json(folder)
    except FileNotFoundError:
        raise NotComparable(f"{folder} is no run: {RUN_FILE} is missing") from None
    if "overrides" not in run or "dtype" not in (run.get("policy") or {}):
        raise NotComparable(
            f"{folder / RUN_FILE} does not say how a policy with a network was made; there is no reference"
        )
    return run


def build(run: Mapping[str, Any], overrides: Sequence[str], samples: Sequence[Sample]) -> Subjects:
    """Build the run's reference and the policy that the overrides name.

    Raises:
        NotComparable: the reference would not be the run's policy, or the policy has other weights.
        ConfigError, ValueError, OSError: a policy cannot be built here; see `build_policy`.
    """
    about = run["policy"]
    recorded_overrides = [
        text
        for text in repeatable(current_overrides(run["overrides"]), overrides)
        if is_below(key_of(text), GROUPS)
    ]
    precision = f"policy.precision={about['dtype']}"
    reference_config = configure(
        [*(t for t in recorded_overrides if key_of(t) != "policy.precision"), precision], typed=()
    )
    chosen = configure([text for text in overrides if key_of(text) in ("policy", "policy._target_")]).policy
    if not make_spec(chosen).has_stages:
        raise NotComparable(f"policy={chosen.name} has no network to replay; choose policy=baseline")
    config = configure(on_top(recorded_overrides, overrides, precision), typed=overrides)
    backends = choose_backends(config)
    checkpoint = load(reference_config)
    reference = eager_policy(reference_config, checkpoint)
    require_cameras([request for request, _ in samples], reference.cameras)
    require_same("the reference", reference.provenance(), about, FACTS)
    same = all(
        getattr(config, name) == getattr(reference_config, name) for name in ("checkpoint", "denoise")
    ) and all(
        getattr(config.pi05_options(), name) == getattr(reference_config.pi05_options(), name)
        for name in ("precision", "device")
    )
    own = checkpoint if same else load(config)
    eager = eager_policy(config, own)
    require_cameras([request for request, _ in samples], eager.cameras)
    require_same("the policy", eager.provenance(), about, OF_THE_WEIGHTS)
    if eager.device != reference.device:
        raise NotComparable(f"both must be on one device, got {reference.device} and {eager.device}")
    options = config.pi05_options()
    in_form = replace(
        reference_config.pi05_options(), form=options.form, prompt_multiple=options.prompt_multiple
    )
    denoise, own_denoise = checkpoint.stages["denoise"], own.stages["denoise"]
    assert isinstance(denoise, Denoise)
    assert isinstance(own_denoise, Denoise)
    return Subjects(
        reference=reference,
        shaped=eager_policy(replace(reference_config, policy=in_form), checkpoint),
        policy=optimise(config, eager, own, backends, lambda _: [request for request, _ in samples]),
        reference_denoise=denoise,
        policy_denoise=own_denoise,
    )


def on_top(recorded_overrides: Sequence[str], overrides: Sequence[str], precision: str) -> list[str]:
    """Append overrides to a run's own, of which those they replace are dropped."""
    keys = {key_of(text) for text in overrides}

    def replaced(key: str) -> bool:
        if "policy" in keys and (key in RECIPE or key.startswith("optim")):
            return True
        return key in keys or any(
            key.startswith(f"{group.replace('/', '.')}.") for group in keys - {"policy"}
        )

    samples = [text for text in recorded_overrides if not replaced(key_of(text))]
    if "policy.precision" not in keys:
        samples = [*(text for text in samples if key_of(text) != "policy.precision"), precision]
    return [*samples, *overrides]


def require_same(
    who: str, facts_now: Mapping[str, Any], recorded: Mapping[str, Any], facts: Iterable[str]
) -> None:
    """Raise NotComparable when a policy's facts are not those recorded."""
    for name in facts:
        if name in recorded and portable(facts_now.get(name)) != portable(recorded[name]):
            raise NotComparable(
                f"{name} of {who} must be {recorded[name]} as in {RUN_FILE}, got {facts_now.get(name)}; "
                "use the run's checkpoint and the version of conf/ that it was made with"
                f"{how_to_get(recorded[name])}"
            )
