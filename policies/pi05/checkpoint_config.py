"""The schema of conf/checkpoint, checked without importing torch, which takes a second."""

from dataclasses import dataclass

from policies.pi05.dims import RANDOM_SIZES
from policies.pi05.norm_stats import NORM_MODES, STATE_DIM

LAYOUT_PREFIX = {"native": "", "openpi": "", "lerobot": "model."}  # of the names of tensors in a file
LAYOUTS = (*LAYOUT_PREFIX, "random")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(kw_only=True)  # not frozen: OmegaConf cannot compose into a frozen dataclass
class CheckpointConfig:
    """The schema of conf/checkpoint/*.yaml. What training fixed has no default.

    Attributes:
        layout: native, openpi, lerobot or random.
        path: folder, or hub id (lerobot); null for random.
        revision: of the hub id; null is its main branch, or what the cache has.
        tokenizer: SentencePiece file; null is tokenizer.model in the folder (random: the reference
            tokenizer).
        norm_stats: file; null is the one in the folder (random: statistics that change nothing).
        state_in_prompt: whether the prompt carries the state.
        state_prompt_dims: numbers of state in the prompt: 8 for openpi, 32 for lerobot, which pads before it
            discretises; null if and only if there is no state in it.
        horizon: actions per chunk; must agree with the checkpoint's config.json.
        sha256: expected of model.safetensors; null accepts any.
        suites: LIBERO's suites that the weights were trained for; null where nobody says.

    Raises:
        ValueError: a value out of range, or two that contradict each other.
    """

    name: str  # label in records
    layout: str
    path: str | None = None
    revision: str | None = None
    sizes: str | None = None  # small or full; random only
    tokenizer: str | None = None
    norm_stats: str | None = None
    norm_mode: str  # quantile or mean_std
    state_in_prompt: bool
    state_prompt_dims: int | None = None
    horizon: int
    replan_steps: int  # actions executed before the next inference
    denoise_steps: int  # Euler steps
    sha256: str | None = None
    suites: list[str] | None = None
    seed: int = 0  # of random weights

    def __post_init__(self) -> None:
        _check(self.layout in LAYOUTS, "layout", f"one of {LAYOUTS}", self.layout)
        _check(self.norm_mode in NORM_MODES, "norm_mode", f"one of {tuple(NORM_MODES)}", self.norm_mode)
        if self.layout == "random":
            _check(self.path is None, "path", "null with layout=random", self.path)
            _check(self.sha256 is None, "sha256", "null with layout=random", self.sha256)
            _check(
                self.sizes in RANDOM_SIZES,
                "sizes",
                f"one of {tuple(RANDOM_SIZES)} with layout=random",
                self.sizes,
            )
        else:
            what = "FOLDER_OR_HUB_ID" if self.layout == "lerobot" else "FOLDER"
            way_out = f"; give checkpoint.path={what}"
            _check(bool(self.path), "path", f"a folder with layout={self.layout}", self.path, way_out)
            _check(
                self.sizes is None, "sizes", "null unless layout=random (config.json has them)", self.sizes
            )
        _check(
            self.revision is None or self.layout == "lerobot",
            "revision",
            "null unless layout=lerobot",
            self.revision,
        )
        if self.path is not None:
            refuse_pickle(self.path)
        _check(self.horizon >= 1, "horizon", ">= 1", self.horizon)
        _check(
            1 <= self.replan_steps <= self.horizon,
            "replan_steps",
            f"1 to horizon={self.horizon}",
            self.replan_steps,
        )
        _check(self.denoise_steps >= 1, "denoise_steps", ">= 1", self.denoise_steps)
        if self.state_in_prompt:
            enough = self.state_prompt_dims is not None and self.state_prompt_dims >= STATE_DIM
            wanted = f">= {STATE_DIM} with state_in_prompt=true (8 for openpi, 32 for lerobot)"
            _check(enough, "state_prompt_dims", wanted, self.state_prompt_dims)
        else:
            _check(
                self.state_prompt_dims is None,
                "state_prompt_dims",
                "null with state_in_prompt=false",
                self.state_prompt_dims,
            )
        if self.sha256 is not None:
            is_hash = len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
            _check(is_hash, "sha256", "64 lower-case hexadecimal digits or null", self.sha256)
        _check(self.seed >= 0, "seed", ">= 0", self.seed)


def refuse_pickle(path: str) -> None:
    """Raise ValueError for a path that names a pickle."""
    if path.endswith(PICKLES):
        raise ValueError(
            f"checkpoint.path must be a folder with model.safetensors, got the pickle {path!r}; "
            "unpickling runs code from the file, so convert it to safetensors where you trust it"
        )


def _check(holds: bool, key: str, wanted: str, got: object, way_out: str = "") -> None:
    if not holds:
        raise ValueError(f"checkpoint.{key} must be {wanted}, got {got!r}{way_out}")
