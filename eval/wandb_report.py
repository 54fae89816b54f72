"""W&B Report of a group: `python -m eval.wandb_report GROUP [--project P] [--entity E]` needs a W&B login.

A sweep's group is the name of its folder; offline runs are uploaded first, by `python -m eval.wandb_sync`.
The panels show what the page of `python -m eval.report` shows; intervals and verdicts are in that page alone.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import OmegaConf
from rich.text import Text

from eval.config.groups import CONF
from eval.render.console import print_error, report_console
from eval.tracking.base import TrackingError
from eval.tracking.login import require_login
from eval.tracking.wandb import (
    EPISODE_INDEX,
    EPISODE_SUCCESS_RATE,
    EPISODE_VIDEO,
    EPISODES_TABLE,
    INFERENCE_INDEX,
    INFERENCE_INFER_MS,
    INFERENCE_STAGE_MS,
)
from policies.pi05.dims import STAGES

NEEDED = 'a W&B Report needs wandb-workspaces: pip install -c constraints.txt -e ".[report]"'

Save = Callable[[Any], str]
"""Saves a report, returns its address."""


def build(group: str, project: str, entity: str | None) -> Any:
    """Lay out the report, a `wandb_workspaces.reports.v2.Report`; nothing is sent.

    Raises:
        TrackingError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as blocks
        from wandb_workspaces.expr import Metric
    except ModuleNotFoundError as missing:
        raise TrackingError(f"{NEEDED} ({missing})") from missing
    owner = {"entity": entity} if entity else {}
    runs = blocks.Runset(project=project, name=group, filters=[Metric("Group") == group], **owner)

    def grid(*panels: Any) -> Any:
        return blocks.PanelGrid(runsets=[runs], panels=list(panels))

    times = ["summary/infer_ms_p50", "summary/infer_ms_p95"]
    stages = [
        blocks.LinePlot(
            title=f"{stage} ms",
            x=INFERENCE_INDEX,
            y=[INFERENCE_STAGE_MS.format(stage=stage)],
            smoothing_factor=0,
        )
        for stage in STAGES
    ]
    return blocks.Report(
        project=project,
        title=f"Success and latency of {group}",
        description=(
            "Latency is observation to action, batch 1, without warm-up and what ran beside other episodes."
        ),
        blocks=[
            blocks.H2(text="Success against latency"),
            grid(
                blocks.ScatterPlot(
                    title="Success rate against p50 ms",
                    x=blocks.SummaryMetric(times[0]),
                    y=blocks.SummaryMetric("summary/success_rate"),
                ),
                blocks.BarPlot(
                    title="Success rate, 95 % Wilson limits",
                    metrics=[f"summary/success_rate{limit}" for limit in ("_low", "", "_high")],
                ),
                blocks.BarPlot(title="Observation to action, p50 and p95 ms", metrics=times),
            ),
            blocks.H2(text="Latency by stage"),
            grid(
                *stages,
                blocks.BarPlot(title="p50 ms", metrics=[f"summary/{stage}_ms_p50" for stage in STAGES]),
                blocks.LinePlot(title="observation to action ms", x=INFERENCE_INDEX, y=[INFERENCE_INFER_MS]),
            ),
            blocks.H2(text="Episodes"),
            grid(
                blocks.LinePlot(title="success rate so far", x=EPISODE_INDEX, y=[EPISODE_SUCCESS_RATE]),
                blocks.WeavePanelSummaryTable(table_name=EPISODES_TABLE),
                blocks.MediaBrowser(title="videos", media_keys=[EPISODE_VIDEO]),
            ),
        ],
        **owner,
    )


def save(report: Any) -> str:
    """Send a report to W&B and return its address."""
    report.save()
    return str(report.url)


def main(arguments: Sequence[str] | None = None, save: Save = save) -> int:
    """Make the report; return 1 with one line on stderr when it cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.wandb_report", description="Make a W&B Report of a group of runs."
    )
    parser.add_argument(
        "group", metavar="GROUP", help="tracking.group of the runs; a sweep's is its folder's name"
    )
    project = OmegaConf.load(CONF / "tracking" / "wandb.yaml").project
    parser.add_argument("--project", default=project, help="default: %(default)s")
    parser.add_argument("--entity", help="user or team; default: that of the login")
    options = parser.parse_args(arguments)
    try:
        report = build(options.group, options.project, options.entity)
        require_login()
        address = save(report)
    except Exception as error:  # noqa: BLE001  the service and its library may raise anything; nothing is lost
        print_error(error)
        return 1
    report_console().print(Text(f"report: {address}"), soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
