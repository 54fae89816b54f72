"""The schema of conf/checkpoint, checked without importing torch, which takes a second."""

from dataclasses import dataclass

from policies.pi05.dims import MAX_DENOISE_STEPS, MAX_HORIZON, PUBLISHED, RANDOM_SIZES
from policies.pi05.norm_stats import NORM_MODES, PADDED_DIM, STATE_DIM

LAYOUT_PREFIX = {"native": "", "openpi": "", "lerobot": "model."}  # of the names of tensors in a file
LAYOUTS = (*LAYOUT_PREFIX, "random")
AS_SAVED = {  # keys that may be null, for what the folder says
    "lerobot": ("norm_mode", "state_prompt_dims", "horizon", "replan_steps", "denoise_steps"),
    "openpi": ("horizon",),
}
# Numbers of state in the prompts of training: openpi words the state before it pads it, as lerobot does from
# 0.5.0 on; up to 0.4.4 lerobot padded it first.
PROMPT_DIMS = {
    "openpi": (STATE_DIM,),
    **dict.fromkeys(("lerobot", "native", "random"), (STATE_DIM, PADDED_DIM)),
}
# openpi's pi05_libero, converted: trained without state in the prompt, which no file says (lerobot#2533)
CONVERTED_BY_LEROBOT = "lerobot/pi05_libero_base"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(kw_only=True)  # not frozen: OmegaConf cannot compose into a frozen dataclass
class CheckpointConfig:
    """The schema of conf/checkpoint/*.yaml. What training fixed has no default.

    Null in a key of `AS_SAVED` takes what the folder says.

    Attributes:
        layout: native, openpi, lerobot or random.
        path: folder, or hub id (lerobot); null for random.
        revision: of the hub id; null is its main branch, or what the cache has.
        sizes: small or full for random weights; pi05 for a folder of openpi's PyTorch trainer, which has no
            config.json; else null.
        tokenizer: SentencePiece file; null is tokenizer.model in the folder (random: the reference
            tokenizer).
        norm_stats: file; null is the one in the folder (random: statistics that change nothing).
        state_in_prompt: whether the prompt carries the state.
        state_prompt_dims: numbers of state in the prompt: 8 for openpi and lerobot >= 0.5.0, 32 for
            lerobot <= 0.4.4, which pads before it discretises; null where there is no state in it.
        horizon: actions per chunk; must agree with the checkpoint's config.json.
        sha256: expected of model.safetensors; null accepts any.
        suites: LIBERO's suites that the weights were trained for; null where nobody says. Those of a YAML are
            about the weights that it names by `path` or `sha256`, and about no others.

    Raises:
        ValueError: a value out of range, or two that contradict each other.
    """

    name: str  # label in records
    layout: str
    path: str | None = None
    revision: str | None = None
    sizes: str | None = None
    tokenizer: str | None = None
    norm_stats: str | None = None
    norm_mode: str | None  # quantile or mean_std
    state_in_prompt: bool
    state_prompt_dims: int | None = None
    horizon: int | None
    replan_steps: int | None  # actions executed before the next inference
    denoise_steps: int | None  # Euler steps
    sha256: str | None = None
    suites: list[str] | None = None
    seed: int = 0  # of random weights

    def __post_init__(self) -> None:
        _check(self.layout in LAYOUTS, "layout", f"one of {LAYOUTS}", self.layout)
        for key in ("norm_mode", "horizon", "replan_steps", "denoise_steps"):
            known = getattr(self, key) is not None or key in AS_SAVED.get(self.layout, ())
            _check(known, key, f"given with layout={self.layout}", None)
        modes = (None, *NORM_MODES)
        _check(self.norm_mode in modes, "norm_mode", f"one of {tuple(NORM_MODES)}", self.norm_mode)
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
            allowed = (None, *PUBLISHED) if self.layout == "openpi" else (None,)
            wanted = " or ".join("null" if size is None else size for size in allowed)
            _check(
                self.sizes in allowed,
                "sizes",
                f"{wanted} with layout={self.layout} (config.json has them)",
                self.sizes,
            )
        _check(
            self.revision is None or self.layout == "lerobot",
            "revision",
            "null unless layout=lerobot",
            self.revision,
        )
        if self.path is not None:
            refuse_pickle(self.path)
            if self.path == CONVERTED_BY_LEROBOT:
                _check(
                    not self.state_in_prompt,
                    "state_in_prompt",
                    f"false with {CONVERTED_BY_LEROBOT}: it is openpi's pi05_libero, trained without",
                    self.state_in_prompt,
                    "; choose checkpoint=lerobot_pi05_libero_base",
                )
        most = {"horizon": MAX_HORIZON, "replan_steps": MAX_HORIZON, "denoise_steps": MAX_DENOISE_STEPS}
        for key, largest in most.items():
            value = getattr(self, key)
            _check(value is None or 1 <= value <= largest, key, f"1 to {largest}", value)
        if self.horizon is not None and self.replan_steps is not None:
            check_replan(self.replan_steps, self.horizon)
        if self.state_in_prompt:
            dims = self.state_prompt_dims
            as_saved = dims is None and "state_prompt_dims" in AS_SAVED.get(self.layout, ())
            accepted = PROMPT_DIMS[self.layout]
            wanted = f"{' or '.join(map(str, accepted))} with layout={self.layout} and state_in_prompt=true"
            _check(as_saved or dims in accepted, "state_prompt_dims", wanted, dims)
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
        _check(0 <= self.seed < 2**63, "seed", "0 to 2**63 - 1", self.seed)


def check_replan(replan_steps: int, horizon: int) -> None:
    """Raise ValueError where a chunk has fewer actions than are executed of it."""
    _check(1 <= replan_steps <= horizon, "replan_steps", f"1 to horizon={horizon}", replan_steps)


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
