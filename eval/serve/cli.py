"""Serve: `python -m eval.serve policy=realtime checkpoint=... port=8000` puts a policy behind a websocket.

Non-obvious behaviors:
    * The port is taken before the policy is built, and connections are refused until it is ready.
    * Ctrl-C and SIGTERM let the answer that is being computed leave, for some seconds; a policy that takes
      longer, or is still being built, is ended with the process.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eval.app.command import CommandError, command
from eval.config.credentials import refuse_credentials
from eval.config.multiply import key_of
from eval.config.schema import ConfigError, Pi05PolicyConfig, RemotePolicyConfig, register_schema
from eval.episodes.signals import Signalled
from eval.records import provenance
from eval.records.resume import portable
from eval.render.console import print_info, report_console
from eval.serve import record
from eval.serve.config import IGNORED, ServeRun, read_api_key
from eval.serve.doors import make_door
from eval.serve.inference import Inference
from eval.serve.server import PolicyServer, on_signals
from eval.specs.base import PolicySpec
from eval.specs.choose import checked_spec
from policies.base import Policy
from policies.files import expand_home

LAST_WORDS_S = 5.0  # for the answer that is being computed when the server ends, and for goodbyes
SIZES = "server.image_sizes"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Serving:
    """A command line, checked."""

    config: ServeRun
    spec: PolicySpec
    api_key: str | None

    async def run(self, sock: socket.socket) -> None:
        """Build and serve; Signalled when a signal ends it, CommandError when the policy is lost."""
        signals: list[int] = []
        stopped = asyncio.Event()

        def react(number: int) -> None:
            signals.append(number)
            stopped.set()

        from eval.serve.build import build

        on_signals(asyncio.get_running_loop(), react)
        began = datetime.now().astimezone()
        inference = Inference()
        building = asyncio.ensure_future(inference.build(lambda: build(self.config, self.spec)))
        if not await _first(building, stopped):
            print_info("interrupted before anybody was served")
            _leave(128 + signals[0])
        policy = building.result()
        server = self._server(policy, inference)
        serving = asyncio.ensure_future(server.run(sock, lambda: self._announce(policy, sock)))
        await _first(serving, stopped)
        server.stop()
        await asyncio.wait((serving,), timeout=LAST_WORDS_S)  # a hung policy holds its client's handler
        if serving.done():
            serving.result()
        inference.end()
        ended_by = signal.Signals(signals[0]).name if signals else str(server.lost)
        self._report(policy, server, began, ended_by)
        if not inference.is_idle:
            print_info("the policy still computes; it ends with the process")
            _leave(128 + signals[0] if signals else 1)
        if signals:
            raise Signalled(signals[0])
        raise CommandError(f"{server.lost}; start it again")

    def _server(self, policy: Policy, inference: Inference) -> PolicyServer:
        options = self.config.server
        return PolicyServer(
            make_door(policy, options.protocol, options.answer),
            inference,
            self.config.seed,
            policy.replan_steps,
            options.max_message_mb,
            options.patience_s,
            self.api_key,
            print_info,
        )

    def _announce(self, policy: Policy, sock: socket.socket) -> None:
        host, port, *_ = sock.getsockname()
        options = self.config.server
        about = portable(policy.provenance())
        parts = [
            f"serving policy {policy.name} on ws://{host}:{port} ({options.protocol})",
            f"checkpoint {about['checkpoint']}" if about.get("checkpoint") else None,
            about.get("weights_label"),
            self._prompts(),
            f"noise: seed {self.config.seed}",
            "ctrl-C ends it",
        ]
        print_info(" | ".join(str(part) for part in parts if part))
        if host not in LOOPBACK and self.api_key is None:
            print_info(
                f"warning: host={self.config.host} is open to the network, without a key and without "
                "encryption; set server.api_key_env, or use host=127.0.0.1 and an SSH tunnel"
            )

    def _prompts(self) -> str | None:
        from eval.serve.build import has_limits

        if not has_limits(self.config):
            return None
        options, server = self.config.pi05_options(), self.config.server
        most = f" of at most {server.max_prompt_tokens} tokens" if server.max_prompt_tokens else ""
        padded = f" padded to multiples of {options.prompt_multiple} tokens" if options.form == "lean" else ""
        sizes = f", images of {' and '.join(map(str, server.image_sizes))} pixels"
        return f"built for prompts{most}{padded}{sizes if options.graphs_images else ''}"

    def _report(self, policy: Policy, server: PolicyServer, began: datetime, ended_by: str) -> None:
        engagement = policy.engagement()
        options = self.config.server
        now = datetime.now().astimezone()
        path = record.default_path(now) if options.record is None else expand_home(options.record)
        facts: dict[str, Any] = {
            "policy": portable(policy.provenance()),
            "protocol": options.protocol,
            "answer": options.answer,
            "seed": self.config.seed,
            "began": began.isoformat(timespec="seconds"),
            "ended": now.isoformat(timespec="seconds"),
            "ended_by": ended_by,
            "engagement": engagement,
            "notes": server.notes,
            "provenance": provenance.collect(self.spec.gpu_index(self.config)),
        }
        report_console().print(record.render(server.sessions, engagement))
        record.write(path, facts, server.sessions)
        print_info(f"record: {path}")


async def _first(work: "asyncio.Future[Any]", stopped: asyncio.Event) -> bool:
    """Wait for the work, or for a signal; return whether the work is done, and raise what it raised."""
    stop = asyncio.ensure_future(stopped.wait())
    await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if work.done():
        work.result()
    return work.done()


def _leave(status: int) -> NoReturn:
    """End the process although its policy's thread still computes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def bind(host: str, port: int) -> socket.socket:
    """Take the port, without listening yet; OSError, naming the keys, where that fails."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 0
        )  # until it listens, or others could bind it
    except OSError as error:
        raise OSError(f"cannot serve on host={host} port={port}: {error.strerror}; choose another") from error
    return sock


def check(config: ServeRun, overrides: Sequence[str]) -> Serving:
    """Refuse what can be refused before anything is loaded.

    Raises ConfigError, CannotRun, ValueError or OSError, naming the key.
    """
    ignored = [text for text in overrides if key_of(text).partition(".")[0] in IGNORED]
    if ignored:
        raise ConfigError(f"eval.serve does not read {', '.join(ignored)}; leave it out")
    if isinstance(config.policy, RemotePolicyConfig):
        raise ConfigError(
            f"policy={config.policy.name} is served already, at policy.url={config.policy.url}; give that "
            "address to its clients, or serve another policy"
        )
    api_key = read_api_key(config.server)
    if config.server.record is not None and expand_home(config.server.record).exists():
        raise ConfigError(f"server.record={config.server.record} already exists; choose a new file")
    spec = checked_spec(config, overrides)
    from eval.serve.build import prepare  # torch, which what is refused above needs not

    prepared = prepare(config, spec)
    if any(key_of(text) == SIZES for text in overrides) and not sees_sizes(prepared):
        raise ConfigError(f"{SIZES} is read with policy.images=cuda_graph alone; leave it out")
    return Serving(prepared, spec, api_key)


def sees_sizes(config: ServeRun) -> bool:
    """Whether the policy serves images of the sizes that it was built for alone."""
    return isinstance(config.policy, Pi05PolicyConfig) and config.policy.graphs_images


def job(cfg: DictConfig) -> None:
    """Serve what a configuration says, until a signal comes."""
    from optim.commands import user_errors

    with user_errors():
        refuse_credentials(cfg)
        config = OmegaConf.to_object(cfg)
        assert isinstance(config, ServeRun)
        serving = check(config, list(HydraConfig.get().overrides.task))
        with bind(config.host, config.port) as sock:
            asyncio.run(serving.run(sock))


def main() -> None:
    register_schema("serve", ServeRun)
    command("serve", job)
