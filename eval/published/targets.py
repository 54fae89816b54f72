"""What was published: where the weights lie, and the success that others report with them."""

from collections.abc import Mapping
from dataclasses import dataclass

from eval.analysis.statistics import Interval, wilson
from policies.pi05.checkpoint_files import HUB_FILES, PROCESSORS
from policies.pi05.weight_files import WEIGHTS

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
OFFICIAL_EPISODES = 500  # of a suite: 10 tasks x 50 initial states (openpi examples/libero/main.py)

# openpi loads PaliGemma's tokenizer from here (openpi models/tokenizer.py); on the hub it is gated.
TOKENIZER_URL = "gs://big_vision/paligemma_tokenizer.model"
TOKENIZER_ABOUT = "4.3 MB"
TOKENIZER_NAMES = ("tokenizer.model", "tokenizer.json", "tokenizer/*")  # in a folder that brings its own
# `convert` chooses this layout for a network of sizes that openpi has no name for: a small copy.
OTHER_SIZES = "checkpoint.layout=native"


@dataclass(frozen=True)
class Published:
    """Success that somebody reports."""

    by: str
    percent: Mapping[str, float]  # by suite
    episodes: int  # of each suite

    def successes(self, suite: str) -> int:
        return round(self.percent[suite] * self.episodes / 100)

    def interval(self, suite: str) -> Interval:
        return wilson(self.successes(suite), self.episodes)


@dataclass(frozen=True)
class Target:
    """Weights that others evaluated."""

    name: str
    checkpoint: str  # conf/checkpoint/<name>.yaml
    url: str  # gs://BUCKET/FOLDER, or hf://OWNER/NAME of the Hugging Face hub
    about: str  # how much there is to fetch, for whoever cannot ask the server
    files: tuple[str, ...]  # patterns of what is fetched
    needed: tuple[str, ...]  # patterns: files without which it is no such checkpoint
    is_jax: bool  # its weights are converted before they can be loaded
    overrides: tuple[str, ...]  # of the published evaluation, where the files say something else or nothing
    state_prompt_dims: int | None  # lerobot: of the version that trained it, for a folder that does not tell
    published: tuple[Published, ...]

    @property
    def filled(self) -> tuple[str, ...]:
        """Overrides that `weights.fill_in` may add, whatever their values are where they end with `=`."""
        if self.is_jax:
            return (OTHER_SIZES, "checkpoint.norm_stats=")
        return (f"checkpoint.state_prompt_dims={self.state_prompt_dims}",)


def _by_suite(*percent: float) -> dict[str, float]:
    return dict(zip(SUITES, percent, strict=True))


# openpi examples/libero/README.md, "Results": 10 tasks x 50 episodes.
OPENPI = Published("openpi", _by_suite(98.8, 98.2, 98.0, 92.4), OFFICIAL_EPISODES)
# allenai/vla-evaluation-harness 0.8.0, docs/reproductions: the same weights, served by openpi.
VLA_EVAL = Published("vla-eval", _by_suite(98.0, 99.6, 98.6, 94.6), OFFICIAL_EPISODES)
# lerobot docs/source/libero.mdx, "Reproducing published results": `--eval.n_episodes=10` of each task.
LEROBOT = Published("lerobot", _by_suite(97.0, 99.0, 98.0, 96.0), 100)

TARGETS = {
    target.name: target
    for target in (
        Target(
            name="openpi_pi05_libero",
            checkpoint="pi05_libero",
            url="gs://openpi-assets/checkpoints/pi05_libero",
            about="13.4 GB, and as much again to convert them",
            files=("params/*", "assets/*"),
            needed=("params/_METADATA", "assets/*norm_stats.json"),
            is_jax=True,
            overrides=(),
            state_prompt_dims=None,
            published=(OPENPI, VLA_EVAL),
        ),
        Target(
            name="lerobot_pi05_libero_finetuned",
            checkpoint="lerobot_pi05_libero",
            url="hf://lerobot/pi05_libero_finetuned",
            about="7 GB (bfloat16) to 15 GB (float32)",
            files=(*HUB_FILES, "sizes.json"),  # that of a copy with a small network
            needed=(
                "config.json",
                f"{WEIGHTS}*",
                *PROCESSORS,
                "policy_preprocessor_step_*_normalizer_processor.safetensors",
            ),
            is_jax=False,
            overrides=("checkpoint.replan_steps=10",),  # libero.mdx: `--policy.n_action_steps=10`
            state_prompt_dims=32,  # on the hub since October 2025 (lerobot#2114), half a year before 0.5.0
            published=(LEROBOT,),
        ),
    )
}
