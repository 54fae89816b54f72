"""Sizes of a pi0.5 network, and how each checkpoint format names them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

FORMS = ("lean", "full")
STAGES = ("vision", "prefix", "denoise")


PALIGEMMA_VOCAB = 257152
OPENPI_CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
LIBERO_MASKED_CAMERAS = ("right_wrist_0_rgb",)  # LIBERO has two cameras (openpi policies/libero_policy.py)
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0  # of the time embedding (openpi models_pytorch/pi0_pytorch.py)
# What a file or a command line may ask for at most, well above what anybody trains: larger numbers are slips,
# and would end only when the memory does.
MAX_DENOISE_STEPS = 1000
MAX_HORIZON = 1000
MAX_PROMPT_TOKENS = 8192  # Gemma's context
MAX_CAMERAS = 16
MAX_LAYERS = 1000  # of one stack; pi0.5 has 27
OPENPI_MAX_TOKEN_LEN = 200  # pi0.5's default in openpi models/pi0_config.py; not in the converted config.json


@dataclass(frozen=True)
class VisionDims:
    """SigLIP: `hidden_size` wide, `layers` deep."""

    intermediate_size: int
    hidden_size: int
    layers: int
    heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class GemmaDims:
    """One Gemma stack: the prefix (PaliGemma's language model) or the action expert."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


VISION_SIZES = tuple(entry.name for entry in fields(VisionDims))
GEMMA_SIZES = tuple(entry.name for entry in fields(GemmaDims))
SO400M = VisionDims(intermediate_size=4304, hidden_size=1152, layers=27, heads=16)  # SigLIP So400m/14
# openpi models/gemma.py `get_config`; LoRA variants hold adapters that this code does not merge.
GEMMA_VARIANTS: dict[str, GemmaDims] = {
    "gemma_2b": GemmaDims(width=2048, depth=18, mlp_dim=16384, num_heads=8, num_kv_heads=1, head_dim=256),
    "gemma_300m": GemmaDims(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256),
}


@dataclass(frozen=True)
class Pi05Dims:
    """All sizes of one network; ValueError where they do not fit each other.

    `masked_cameras` have no camera in LIBERO: they are masked in the full form, absent in the lean form.
    """

    vocab_size: int
    vision: VisionDims
    prefix: GemmaDims
    expert: GemmaDims
    action_horizon: int
    action_dim: int  # padded; LIBERO uses the first 7
    max_token_len: int
    image_size: int
    patch_size: int
    cameras: tuple[str, ...]  # slots of the network, in order
    masked_cameras: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_positive("vision", asdict(self.vision))
        _check_positive("prefix", asdict(self.prefix))
        _check_positive("expert", asdict(self.expert))
        flat = ("vocab_size", "action_horizon", "action_dim", "max_token_len", "image_size", "patch_size")
        _check_positive("", {name: getattr(self, name) for name in flat})
        for name, most in (("action_horizon", MAX_HORIZON), ("max_token_len", MAX_PROMPT_TOKENS)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be 1 to {most}, got {getattr(self, name)!r:.100}")
        if len(self.cameras) > MAX_CAMERAS:
            raise ValueError(f"cameras must be at most {MAX_CAMERAS}, got {len(self.cameras)}")
        if self.vision.hidden_size % self.vision.heads:
            raise ValueError(
                f"vision.hidden_size must be a multiple of vision.heads={self.vision.heads}, "
                f"got {self.vision.hidden_size}"
            )
        for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            prefix, expert = getattr(self.prefix, name), getattr(self.expert, name)
            if prefix != expert:
                raise ValueError(
                    f"expert.{name} must equal prefix.{name}={prefix}, got {expert}: "
                    "layer i of the expert attends to the keys of layer i of the prefix"
                )
        if self.prefix.num_heads % self.prefix.num_kv_heads:
            raise ValueError(
                f"prefix.num_heads must be a multiple of prefix.num_kv_heads={self.prefix.num_kv_heads}, "
                f"got {self.prefix.num_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size={self.patch_size}, got {self.image_size}"
            )
        if unknown := set(self.masked_cameras) - set(self.cameras):
            raise ValueError(f"masked_cameras must be among cameras={self.cameras}, got {sorted(unknown)}")
        if not self.live_cameras:
            raise ValueError(f"masked_cameras must leave a camera, got all of {self.cameras}")

    @property
    def tokens_per_image(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def live_cameras(self) -> tuple[str, ...]:
        """Slots that have a camera, in order."""
        return tuple(camera for camera in self.cameras if camera not in self.masked_cameras)

    def to_native(self) -> dict[str, Any]:
        """The content of a native config.json."""
        return asdict(self)

    @classmethod
    def from_native(cls, config: Mapping[str, Any], source: str) -> "Pi05Dims":
        """Read our own config.json, `source` in errors; keys that are not sizes are ignored.

        All formats raise ValueError where a key is missing, of another type, or does not fit the others.
        """
        return _checked(
            source,
            vocab_size=_get(config, "vocab_size", source),
            vision=VisionDims(**_group(config, "vision", VISION_SIZES, source)),
            prefix=GemmaDims(**_group(config, "prefix", GEMMA_SIZES, source)),
            expert=GemmaDims(**_group(config, "expert", GEMMA_SIZES, source)),
            action_horizon=_get(config, "action_horizon", source),
            action_dim=_get(config, "action_dim", source),
            max_token_len=_get(config, "max_token_len", source),
            image_size=_get(config, "image_size", source),
            patch_size=_get(config, "patch_size", source),
            cameras=_names(config, "cameras", source),
            masked_cameras=_names(config, "masked_cameras", source),
        )

    @classmethod
    def from_openpi(cls, config: Mapping[str, Any], source: str) -> "Pi05Dims":
        """Read the config.json that openpi's `convert_jax_model_to_pytorch.py` writes."""
        return _from_variants(
            config,
            source,
            action_horizon=_get(config, "action_horizon", source),
            action_dim=_get(config, "action_dim", source),
            max_token_len=OPENPI_MAX_TOKEN_LEN,
            image_size=224,
        )

    @classmethod
    def from_lerobot(
        cls,
        config: Mapping[str, Any],
        source: str,
        cameras: tuple[str, ...] = OPENPI_CAMERAS,
        masked_cameras: tuple[str, ...] = LIBERO_MASKED_CAMERAS,
        sizes: "NamedSizes | None" = None,
    ) -> "Pi05Dims":
        """Read lerobot's config.json (`PI05Config`); `sizes` are those of its variants, pi0.5's if None."""
        kind = _get(config, "type", source)
        if kind != "pi05":
            raise ValueError(f"type must be 'pi05', got {kind!r:.100} in {source}; this is another policy")
        resolution = _get(config, "image_resolution", source)
        if not isinstance(resolution, list) or len(resolution) != 2:
            raise ValueError(f"image_resolution must be [height, width], got {resolution!r:.100} in {source}")
        height, width = resolution
        if height != width:
            raise ValueError(f"image_resolution must be square, got {height!r:.50}x{width!r:.50} in {source}")
        return _from_variants(
            config,
            source,
            action_horizon=_get(config, "chunk_size", source),
            action_dim=_get(config, "max_action_dim", source),
            max_token_len=_get(config, "tokenizer_max_length", source),
            image_size=height,
            cameras=cameras,
            masked_cameras=masked_cameras,
            sizes=sizes,
        )


@dataclass(frozen=True)
class NamedSizes:
    """The sizes that openpi's and lerobot's config.json only name."""

    variants: Mapping[str, GemmaDims]
    vision: VisionDims
    vocab_size: int
    patch_size: int

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str) -> "NamedSizes":
        """Read sizes.json, which lies beside lerobot's config.json where the network is a small one."""
        vision = _group(raw, "vision", (*_VISION_KEYS.values(), "patch"), source)
        return cls(
            {name: GemmaDims(**_group(raw, name, GEMMA_SIZES, source)) for name in GEMMA_VARIANTS},
            VisionDims(**{name: vision[key] for name, key in _VISION_KEYS.items()}),
            _get(raw, "vocab", source),
            vision["patch"],
        )


_VISION_KEYS = {"intermediate_size": "mlp", "hidden_size": "width", "layers": "depth", "heads": "heads"}


def _from_variants(
    config: Mapping[str, Any],
    source: str,
    *,
    action_horizon: int,
    action_dim: int,
    max_token_len: int,
    image_size: int,
    cameras: tuple[str, ...] = OPENPI_CAMERAS,
    masked_cameras: tuple[str, ...] = LIBERO_MASKED_CAMERAS,
    sizes: NamedSizes | None = None,
) -> Pi05Dims:
    sizes = sizes or NamedSizes(GEMMA_VARIANTS, SO400M, PALIGEMMA_VOCAB, patch_size=14)
    return _checked(
        source,
        vocab_size=sizes.vocab_size,
        vision=sizes.vision,
        prefix=_variant(config, "paligemma_variant", sizes.variants, source),
        expert=_variant(config, "action_expert_variant", sizes.variants, source),
        action_horizon=action_horizon,
        action_dim=action_dim,
        max_token_len=max_token_len,
        image_size=image_size,
        patch_size=sizes.patch_size,
        cameras=cameras,
        masked_cameras=masked_cameras,
    )


def _variant(
    config: Mapping[str, Any], key: str, variants: Mapping[str, GemmaDims], source: str
) -> GemmaDims:
    name = _get(config, key, source)
    if not isinstance(name, str) or name not in variants:
        raise ValueError(
            f"{key} must be one of {sorted(variants)}, got {name!r:.100} in {source}; "
            "merge LoRA adapters before converting, or add the variant's sizes to policies/pi05/dims.py"
        )
    return variants[name]


def _get(config: Mapping[str, Any], key: str, source: str) -> Any:
    if key not in config:
        raise ValueError(
            f"{source} has no {key!r} (it has {sorted(config)}); "
            "check that the layout (`checkpoint.layout`) names the program that wrote this checkpoint"
        )
    return config[key]


def _group(config: Mapping[str, Any], key: str, wanted: Sequence[str], source: str) -> dict[str, int]:
    group = _get(config, key, source)
    if not isinstance(group, Mapping):
        raise ValueError(f"{key} must be an object with {', '.join(wanted)}, got {group!r:.100} in {source}")
    return {name: _get(group, name, f"{source} {key}") for name in wanted}


def _names(config: Mapping[str, Any], key: str, source: str) -> tuple[str, ...]:
    names = _get(config, key, source)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} must be a list of names, got {names!r:.100} in {source}")
    return tuple(names)


def _checked(source: str, **sizes: Any) -> Pi05Dims:
    """Build Pi05Dims; errors name the file."""
    try:
        return Pi05Dims(**sizes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _check_positive(prefix: str, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:  # isinstance would let True pass
            raise ValueError(
                f"{prefix}{'.' if prefix else ''}{name} must be a whole number >= 1, got {size!r:.100}"
            )


PI05_FULL = Pi05Dims.from_openpi(
    {
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "action_horizon": 10,
        "action_dim": 32,
    },
    "PI05_FULL",
)
PI05_SMALL = Pi05Dims(
    vocab_size=512,
    vision=VisionDims(intermediate_size=128, hidden_size=64, layers=2, heads=4),
    prefix=GemmaDims(width=128, depth=3, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32),
    expert=GemmaDims(width=64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=32),
    action_horizon=10,
    action_dim=32,
    max_token_len=200,
    image_size=224,
    patch_size=14,
    cameras=OPENPI_CAMERAS,
    masked_cameras=LIBERO_MASKED_CAMERAS,
)
"""Widths and head dimensions are multiples of 16, as FP8 matmuls want; a CPU inference takes tens of ms."""
RANDOM_SIZES = {"small": PI05_SMALL, "full": PI05_FULL}
PUBLISHED = {"pi05": PI05_FULL}
