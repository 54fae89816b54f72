"""Open the runner that a configuration names: build its policy and check the simulator."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.config.schema import Config
from eval.episodes.capture import example_requests
from eval.records.recording import OBSERVATIONS_FILE, RecordingPolicy
from eval.runners.base import Runner, RunnerError
from eval.runners.local import LocalRunner
from eval.runners.watch import Watch
from eval.sim.benchmark import prepare_suite
from eval.sim.tasks import Task
from eval.specs.base import PolicySpec
from policies.base import EpisodeKey, Policy


def open_runner(
    config: Config,
    spec: PolicySpec,
    tasks: Sequence[Task],
    left: Sequence[EpisodeKey],
    folder: Path,
    heir: Sequence[str] = (),
) -> Runner:
    """Open the runner that the configuration names.

    Args:
        spec: builds the policy.
        left: the episodes that it will be given.
        folder: of the run, for observations that are recorded.
        heir: ends this process where an episode cannot be interrupted; see `eval.runners.watch.Watch`.

    Raises:
        RunnerError: Ray is not installed; see `eval.runners.ray.start.launch`.
        ConfigError, ValueError, OSError, SimulatorError: policy or simulator cannot be built here.
    """
    if config.runner.name == "ray":
        try:
            from eval.runners.ray.start import start_ray
        except ModuleNotFoundError as missing:
            raise RunnerError(f'runner=ray needs Ray ({missing}): pip install "ray>=2.49"') from missing
        return start_ray(config, spec, tasks, left)
    spec.check_machine(config)  # refuses what cannot run here before a simulator starts
    simulator = prepare_suite(config.suite.name, spec.gpu_index(config))
    policy = spec.build(config, lambda policy: example_requests(tasks, policy, config.seed)).policy
    return open_local(config, policy, simulator, folder, heir)


def open_local(
    config: Config, policy: Policy, simulator: Mapping[str, Any], folder: Path, heir: Sequence[str] = ()
) -> LocalRunner:
    """Open the local runner of a policy that is ready; it records observations where asked to."""
    watch = Watch(config.runner.episode_timeout_s, heir)
    if not config.record_observations:
        return LocalRunner(policy, simulator, watch=watch)
    recording = RecordingPolicy(policy, config.record_observations)
    save = partial(recording.save, folder / OBSERVATIONS_FILE)
    return LocalRunner(recording, simulator, on_close=save, watch=watch)
