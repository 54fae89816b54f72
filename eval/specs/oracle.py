"""The scripted expert as a policy of the configuration."""

from eval.config.schema import Config, ConfigError
from eval.specs.base import BuiltPolicy, Capture, PolicySpec


class OracleSpec(PolicySpec):
    """Reads the simulator's poses: no weights, no images, one suite."""

    sees_images = False

    def check(self, config: Config) -> None:
        if config.record_observations:
            raise ConfigError(
                "record_observations must be 0 with policy=oracle, which sees no images, "
                f"got {config.record_observations}"
            )
        if config.suite.name != "libero_spatial":
            raise ConfigError(
                f"policy=oracle serves suite=libero_spatial alone, got suite={config.suite.name}"
            )

    def build(self, config: Config, capture: Capture, max_batch: int = 1) -> BuiltPolicy:
        from policies.oracle import OraclePolicy

        return BuiltPolicy(OraclePolicy())

    def wants_gpu(self, config: Config) -> bool:
        return False
