"""As `lerobot.configs.types`."""

from dataclasses import dataclass
from enum import Enum


class FeatureType(str, Enum):  # noqa: UP042  as in lerobot
    STATE = "STATE"
    VISUAL = "VISUAL"
    ENV = "ENV"
    ACTION = "ACTION"


class NormalizationMode(str, Enum):  # noqa: UP042  as in lerobot
    MEAN_STD = "MEAN_STD"
    IDENTITY = "IDENTITY"


@dataclass
class PolicyFeature:
    type: FeatureType
    shape: tuple[int, ...]


def read_features(features: dict[str, dict] | None) -> dict[str, PolicyFeature] | None:
    """Read features as JSON has them."""
    if features is None:
        return None
    return {
        key: PolicyFeature(FeatureType(item["type"]), tuple(item["shape"])) for key, item in features.items()
    }
