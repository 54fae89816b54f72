"""pi0.5 as a policy of the configuration: a checkpoint, and a backend for each of its three stages."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from eval.config.schema import Config, ConfigError
from eval.config.tasks import check_folder
from eval.specs.base import BuiltPolicy, Capture, PolicySpec
from eval.specs.batching import Batching, powers_of_two

if TYPE_CHECKING:  # torch, a second, which `check` does not need
    from optim.base import Backend


class Pi05Spec(PolicySpec):
    """Reads `Pi05PolicyConfig`, checkpoint, denoise and optim."""

    has_stages = True
    takes_guidance = True

    def check(self, config: Config) -> None:
        """See `PolicySpec.check`; ValueError or OSError for what a lerobot folder says."""
        options = config.pi05_options()
        if config.runner.name == "ray" and ":" in options.device:
            raise ConfigError(
                f"policy.device must be auto, cpu or cuda with runner=ray, which hands out the GPUs, "
                f"got {options.device!r}"
            )
        check_folder(config)

    def known_chunks(self, config: Config) -> tuple[int | None, int | None]:
        return config.checkpoint.replan_steps, config.checkpoint.horizon

    def check_machine(self, config: Config) -> None:
        from eval.specs.pi05_build import choose_backends

        choose_backends(config)

    def build(self, config: Config, capture: Capture, max_batch: int = 1) -> BuiltPolicy:
        """Load the weights and apply the backends.

        Backends that are built for shapes are built for 1, 2, 4 ... requests up to `max_batch`; eager stages
        take any number. If a backend serves no batches, everything is built for one request and gets one at a
        time.

        Raises:
            ConfigError: a device that this machine lacks, a stage without a backend, or a backend that
                refuses its options or cannot engage.
            CannotRun: backends, or `policy.images`, cannot run on this machine.
            ValueError, OSError: from the checkpoint or its scales, naming what is missing.
        """
        from eval.specs.pi05_build import built_for_shapes, choose_backends, eager_policy, load, optimise

        backends = choose_backends(config)
        alone = [stage for stage, backend in backends.items() if not backend.serves_batches]
        sizes = (1,) if alone else powers_of_two(max_batch)
        checkpoint = load(config)
        policy = optimise(config, eager_policy(config, checkpoint), checkpoint, backends, capture, sizes)
        batching = Batching(
            sizes=sizes if alone or built_for_shapes(config, backends) else None,
            shape=lambda request: policy.preprocess.prompt_length(request.observation, policy.form),
            one_at_a_time=_reason(backends, alone) if alone and max_batch > 1 else None,
        )
        return BuiltPolicy(policy, batching)

    def wants_gpu(self, config: Config) -> bool:
        return config.pi05_options().device != "cpu"

    def gpu_index(self, config: Config) -> int:
        from eval.specs.pi05_build import choose_device

        return choose_device(config.pi05_options().device).index or 0


def _reason(backends: Mapping[str, "Backend"], alone: list[str]) -> str:
    who = ", ".join(f"optim.{stage}={backends[stage]!r}" for stage in alone)
    groups = ", ".join(f"optim/{stage}" for stage in alone)
    return f"no batches with {who}; choose another {groups} to have them"
