"""A run with policy=remote: the records of the policy itself, and a server that dies in an episode."""

import time
from collections.abc import Sequence
from pathlib import Path

from websockets.sync.server import ServerConnection

from eval.analysis.comparison import compare
from eval.analysis.summary import summarise
from eval.episodes.plan import Plan
from eval.records.episodes import Episodes
from eval.records.reader import Run, read_run
from eval.records.schema import AROUND
from eval.records.video import VideoMode
from eval.records.writer import RunWriter
from eval.render.console import report_console
from eval.render.summary import render
from eval.runners.local import LocalRunner
from eval.runners.recorder import RunRecorder
from eval.tracking.base import NullTracker, SafeTracker
from policies.base import ActionChunk, Policy, Request
from policies.remote import RemotePolicy
from policies.remote.wire import pack_openpi
from tests.eval.fakes import SIMULATOR, ArithmeticEnv, ArithmeticPolicy, tasks
from tests.eval.serve.served import serving
from tests.policies.remote import servers
from tests.policies.remote.servers import ACTIONS, answering, remote

NUM_TASKS, EPISODES = 3, 3


def do_run(policy: Policy, folder: Path) -> Run:
    """Run nine episodes of arithmetic."""
    about = policy.provenance()
    plan = Plan(
        make_env=ArithmeticEnv,  # type: ignore[arg-type]
        tasks=tasks(NUM_TASKS),
        episodes=Episodes("libero_spatial", tuple(range(NUM_TASKS)), 0, EPISODES, 7),
        seeding="paired",
        max_steps=6,
        max_errors=3,
        warmup_inferences=1,
        video=VideoMode.NONE,
        misses_allowed=False,
        policy=policy.name,
        checkpoint=about["checkpoint"],
        checkpoint_sha256=about.get("weights_sha256"),
        weights_label=None,
    )
    with RunWriter(folder) as writer:
        runner = LocalRunner(policy, SIMULATOR)
        info = {"planned_episodes": plan.num_episodes, "policy": about}
        recorder = RunRecorder(plan, writer, SafeTracker(NullTracker()), info, runner.engagement)
        runner.run(plan, recorder)
        recorder.write_run()
    return read_run(folder)


def test_nine_episodes_of_a_served_policy_are_those_of_the_policy_itself(tmp_path: Path) -> None:
    own = do_run(ArithmeticPolicy(), tmp_path / "own")
    with serving(ArithmeticPolicy()) as served:
        client = remote(served.url)
        through = do_run(client, tmp_path / "remote")
        client.close()
    told = [
        [(e.key, e.outcome, e.steps, e.actions_sha256, e.checkpoint_sha256) for e in run.episodes]
        for run in (own, through)
    ]
    assert len(told[0]) == NUM_TASKS * EPISODES
    assert told[0] == told[1]
    assert {e.success for e in own.episodes} == {True, False}
    comparison = compare(own, through, margin=5.0)
    assert (comparison.lost, comparison.won) == ((), ())


def test_the_summary_shows_server_and_way_and_no_engagement(tmp_path: Path) -> None:
    with serving(ArithmeticPolicy()) as served:
        client = remote(served.url)
        summary = summarise(do_run(client, tmp_path))
        client.close()
    assert list(summary.stages) == ["server", "way", AROUND]
    assert summary.infer is not None
    parts = summary.stages["server"].mean_ms + summary.stages["way"].mean_ms
    assert 0 < parts <= summary.infer.mean_ms
    assert summary.engagement == ()
    console = report_console()
    with console.capture() as capture:
        console.print(render(summary))
    assert "way" in capture.get()
    assert "Engagement" not in capture.get()


class Parting(RemotePolicy):
    """Leaves after every answer, so that each episode connects again."""

    def infer(self, requests: Sequence[Request]) -> list[ActionChunk]:
        chunks = super().infer(requests)
        self.close()
        return chunks


def test_to_connect_again_is_in_no_latency(tmp_path: Path) -> None:
    def handle(connection: ServerConnection) -> None:
        time.sleep(0.2)
        answering({"actions": ACTIONS})(connection)

    with servers.serving(handle) as url:
        run = do_run(Parting(url, "weights", replan_steps=6), tmp_path)
    assert [episode.inferences for episode in run.episodes] == [1] * NUM_TASKS * EPISODES
    assert all(episode.wall_s > 0.2 for episode in run.episodes[1:])
    assert all(0 < inference.infer_ms < 150 for inference in run.inferences)


def test_a_server_that_dies_in_an_episode_costs_that_episode_alone(tmp_path: Path) -> None:
    connections: list[ServerConnection] = []

    def handle(connection: ServerConnection) -> None:
        connections.append(connection)
        connection.send(pack_openpi({}))
        for i, _ in enumerate(connection):
            if len(connections) == 1 and i == 6:
                return  # in the middle of an episode
            connection.send(pack_openpi({"actions": ACTIONS}))

    with servers.serving(handle) as url:
        client = remote(url)
        run = do_run(client, tmp_path)
        client.close()
    errors = [episode for episode in run.episodes if episode.outcome == "error"]
    assert len(run.episodes) == NUM_TASKS * EPISODES
    assert [error.error_type for error in errors] == ["RemoteError"]
    message = str(errors[0].error_message)
    assert message.startswith(f"policy.url={url} closed the connection before it answered")
    assert "\n" not in message
    assert len(connections) == 2
    assert run.run["finished"] is True
