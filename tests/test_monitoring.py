"""Rules and dashboard hold: promtool plays each alert, and a real Prometheus scrapes a real search and answers every query."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus import Prometheus, promtool
from readme_commands import ROOT
from small_run import NAME
from test_metrics import at, expected, rounds, searcher, total

from pipeline.directory import DirectoryStore
from pipeline.manifest import METRICS_PORT
from pipeline.metrics import METRICS, CountedStore, Exporter
from search.records import EndReason

sys.path.insert(0, str(ROOT / "docs"))
import make_metrics

MONITORING = ROOT / "k8s" / "monitoring"
RULES = make_metrics.rules()
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
QUERIES = [target["expr"] for panel in make_metrics.panels() for target in panel["targets"]]


def rules_file(folder: Path) -> Path:
    """The rules as a plain Prometheus takes them."""
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["spec"]))
    return path


def names(query: str) -> set[str]:
    """Names of metrics in a query."""
    return set(re.findall(r"hiernas[a-z_:]+", re.sub(r'"[^"]*"', "", query)))


def known() -> set[str]:
    """Names of series that an exporter gives, or a rule."""
    histograms = {name + suffix for name, one in METRICS.items() if one.kind == "histogram" for suffix in ("_bucket", "_sum", "_count")}
    return {name for name, one in METRICS.items() if one.kind != "histogram"} | histograms | RECORDED


# -- what stands in the files


def test_kustomize_renders_monitor_rules_and_dashboard() -> None:
    if not shutil.which("kubectl"):
        assert not os.environ.get("CI"), "kubectl is missing"
        pytest.skip("there is no kubectl; the tests in a cluster render it too")
    text = subprocess.run(["kubectl", "kustomize", str(MONITORING)], capture_output=True, text=True, check=True).stdout
    objects = {one["kind"]: one for one in yaml.safe_load_all(text)}
    assert objects.keys() == {"PodMonitor", "PrometheusRule", "ConfigMap"}
    assert {one["metadata"]["namespace"] for one in objects.values()} == {"hiernas"}
    assert objects["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(objects["ConfigMap"]["data"]["hiernas.json"])["panels"] == make_metrics.panels()


def test_the_monitor_selects_the_controllers_pod_and_its_port() -> None:
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())["spec"]
    (job,) = (one for one in yaml.safe_load_all((ROOT / "tests" / "golden" / "controller.yaml").read_text()) if one["kind"] == "Job")
    pod = job["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert {"name": endpoint["port"], "containerPort": METRICS_PORT} in pod["spec"]["containers"][0]["ports"]


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_a_query_names_only_what_is_measured(query: str) -> None:
    assert names(query)
    assert names(query) <= known()
    for name in names(query) & METRICS.keys():
        for label, value in re.findall(rf'{name}\{{[^}}]*?(\w+)[=!]~?"([a-z_|]+)"', query):
            assert set(value.split("|")) <= set(METRICS[name].labels[label])


def test_every_metric_is_in_a_query() -> None:
    used = {name for query in [*QUERIES, *(rule["expr"] for rule in RULES)] for name in names(query)}
    assert {name for name, one in METRICS.items() if not {name, f"{name}_bucket"} & used} == set()


def test_infrastructure_failures_are_all_ends_that_nobody_wanted() -> None:
    (reasons,) = set(re.findall(r'reason=~"([a-z_|]+)"', ALERTS["HiernasInfrastructureFailures"]["expr"]))
    wanted = {EndReason.STOPPED, EndReason.SUPERSEDED, EndReason.HANDED_OVER, EndReason.CONTROLLER_LOST}
    assert set(reasons.split("|")) == set(EndReason) - wanted


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do_and_where_it_is_explained(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook"}
    page, _, anchor = annotations["runbook"].partition("#")
    assert anchor == name.lower()
    assert f"\n### {name}\n\n" in (ROOT / page).read_text(encoding="utf-8")


def test_panels_lie_beside_each_other_and_use_the_chosen_source_and_runs() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in make_metrics.panels():
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["expr"].count('run=~"$run"') == len(re.findall(r"hiernas_", target["expr"]))
    assert len(taken) == 24 * (1 + max(y for _, y in taken))
    assert make_metrics.panels()[0]["title"].startswith("Outcomes")


# -- each alert, played


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", rules_file(tmp_path))


HEALTHY = {
    'hiernas_in_charge{pod="a"}': "1+0x600",
    'hiernas_claims_total{pod="a"}': "1+0x600",
    'hiernas_in_flight{pod="a"}': "4+0x600",
    'hiernas_workers_limit{pod="a"}': "4+0x600",
    'hiernas_workers{pod="a", state="running"}': "4+0x600",
    'hiernas_workers{pod="a", state="pending"}': "0+0x600",
    'hiernas_refused{pod="a"}': "0+0x600",
    'hiernas_held{pod="a", why="paused"}': "0+0x600",
    'hiernas_held{pod="a", why="halted"}': "0+0x600",
    'hiernas_suspect_nodes{pod="a"}': "0+0x600",
    'hiernas_last_progress_timestamp_seconds{pod="a"}': "0+60x600",
    'hiernas_evaluations_total{pod="a", outcome="evaluated"}': "500+1x600",
    'hiernas_attempts_total{pod="a", reason="disrupted"}': "100+0x600",
    'hiernas_attempts_total{pod="a", reason="superseded"}': "0+1x600",
    'hiernas_gpu_seconds_total{pod="a", use="useful"}': "1000+0x600",
    'hiernas_gpu_seconds_total{pod="a", use="lost"}': "500+0x600",
    'hiernas_gpu_seconds_open{pod="a"}': "200+0x600",
    'hiernas_gpu_seconds_limit{pod="a"}': "2000+0x600",
    'hiernas_store_requests_total{pod="a", operation="read", result="ok"}': "0+100x600",
    'hiernas_store_requests_total{pod="a", operation="read", result="error"}': "0+1x600",
    'hiernas_phase_duration_seconds_bucket{pod="a", phase="total", le="300.0"}': "10+0x600",
    'hiernas_phase_duration_seconds_bucket{pod="a", phase="total", le="1000.0"}': "10+0x600",
    'hiernas_phase_duration_seconds_bucket{pod="a", phase="total", le="+Inf"}': "10+0x600",
    'hiernas_phase_duration_seconds_count{pod="a", phase="total"}': "10+0x600",
}
"""A run that gets on: a minute a sample, ten hours long."""


def total_bucket(bound: str, pod: str = "a") -> str:
    return f'hiernas_phase_duration_seconds_bucket{{pod="{pod}", phase="total", le="{bound}"}}'


def progress(minute: int) -> dict[str, str]:
    """Nothing accepted after that minute."""
    return {
        'hiernas_last_progress_timestamp_seconds{pod="a"}': f"0+60x{minute} {60 * minute}+0x600",
        'hiernas_evaluations_total{pod="a", outcome="evaluated"}': f"500+1x{minute} {500 + minute}+0x600",
    }


IDLE = progress(20) | {'hiernas_workers{pod="a", state="running"}': "4+0x20 0+0x500", 'hiernas_workers{pod="a", state="pending"}': "0+0x20 4+0x500"}
SLOW = {total_bucket("300.0"): "0+0x600", total_bucket("1000.0"): "0+0x600", total_bucket("3000.0"): "10+0x600"}
"""The median is in the bucket up to 3000 s: 2000 s."""
UNMEASURED = {total_bucket(bound): "0+0x600" for bound in ("300.0", "1000.0", "+Inf")} | {
    'hiernas_phase_duration_seconds_count{pod="a", phase="total"}': "0+0x600"
}
GONE_AT_60 = {name: values.replace("x600", "x60 stale") for name, values in HEALTHY.items()}
RELEASED = GONE_AT_60 | {'hiernas_in_charge{pod="a"}': "1+0x58 0+0x1 stale"}
SECOND_POD = {name.replace('pod="a"', 'pod="b"'): "_x62 " + values.replace("x600", "x500") for name, values in HEALTHY.items()}
SECOND_POD |= GONE_AT_60 | {'hiernas_last_progress_timestamp_seconds{pod="b"}': "_x62 3720+60x500"}
SECOND_POD_RELEASED = {name: values.replace("x500", "x60 stale") for name, values in SECOND_POD.items()} | {
    'hiernas_in_charge{pod="b"}': "_x62 1+0x58 0+0x1 stale"
}
LOCAL = {name.replace('{pod="a"}', "").replace('pod="a", ', ""): values for name, values in GONE_AT_60.items()}


@dataclass(frozen=True)
class Case:
    """What a run looks like, and which alerts fire at some minutes: all of them, and no other."""

    says: str
    changes: dict[str, str] = field(default_factory=dict)
    fires: dict[int, set[str]] = field(default_factory=dict)
    whole: bool = False
    """`changes` is all there is."""


CASES = [
    Case("a run that gets on", {}, {30: set(), 200: set()}),
    Case("the controller vanishes", GONE_AT_60, {60: set(), 65: set(), 67: {"HiernasControllerAbsent"}, 400: {"HiernasControllerAbsent"}, 430: set()}),
    Case("the run is finished, and its last numbers were seen", RELEASED, {70: set(), 120: set()}),
    Case("another pod goes on", SECOND_POD, {61: set(), 70: set(), 150: set()}),
    Case("another pod goes on and finishes", SECOND_POD_RELEASED, {70: set(), 130: set(), 200: set()}),
    Case("a command on one machine ends", LOCAL, {70: set(), 120: set()}, whole=True),
    Case(
        "controllers follow each other", {'hiernas_claims_total{pod="a"}': "1+0x20 2+1x10 12+0x400"},
        {10: set(), 23: set(), 35: {"HiernasControllerRestarts"}, 80: {"HiernasControllerRestarts"}, 100: set()},
    ),
    Case("trainings of 5 minutes hang", progress(20), {75: set(), 90: {"HiernasNoOutcome"}}),
    Case("trainings of 33 minutes hang: five medians pass first", progress(20) | SLOW, {90: set(), 185: set(), 200: {"HiernasNoOutcome"}}),
    Case("nothing was measured yet", progress(20) | UNMEASURED, {90: set(), 375: set(), 390: {"HiernasNoOutcome"}}),
    Case("trainings hang, but the run is paused", progress(20) | {'hiernas_held{pod="a", why="paused"}': "0+0x19 1+0x500"}, {90: set(), 150: set()}),
    Case(
        "it was resumed long after",
        progress(20) | {'hiernas_last_progress_timestamp_seconds{pod="a"}': "0+60x20 1200+0x100 7320+0x400", 'hiernas_held{pod="a", why="paused"}': "0+0x19 1+0x101 0+0x400"},
        {120: set(), 140: set(), 180: set(), 192: {"HiernasNoOutcome"}},
    ),
    Case("everything waits", IDLE, {20: set(), 55: set(), 65: {"HiernasNothingRunning"}, 95: {"HiernasNothingRunning"}}),
    Case("everything waits, none is allowed", IDLE | {'hiernas_workers_limit{pod="a"}': "0+0x600"}, {80: set()}),
    Case("everything waits, the budget is used up", IDLE | {'hiernas_held{pod="a", why="budget"}': "1+0x600"}, {80: set()}),
    Case("nothing is ever seen running, outcomes come", {'hiernas_workers{pod="a", state="running"}': "0+0x600"}, {80: set()}),
    Case("jobs are refused for long", {'hiernas_refused{pod="a"}': "0+0x19 1+0x60 0+0x300"}, {45: set(), 55: {"HiernasJobsRefused"}, 85: set()}),
    Case(
        "half of the attempts are disrupted", {'hiernas_attempts_total{pod="a", reason="disrupted"}': "100+1x600"},
        {5: set(), 60: {"HiernasInfrastructureFailures"}},
    ),
    Case("one attempt in five is disrupted", {'hiernas_attempts_total{pod="a", reason="disrupted"}': "100+0.25x600"}, {60: set(), 150: set()}),
    Case(
        "few attempts, all disrupted",
        {'hiernas_attempts_total{pod="a", reason="disrupted"}': "100+0.03x600", 'hiernas_evaluations_total{pod="a", outcome="evaluated"}': "500+0.01x600"},
        {60: set(), 150: set()},
    ),
    Case(
        "it halts, and its controller leaves", RELEASED | {'hiernas_held{pod="a", why="halted"}': "0+0x50 1+0x9 stale"},
        {49: set(), 52: {"HiernasHalted"}, 200: {"HiernasHalted"}, 430: set()},
    ),
    Case(
        "it halts, is resumed and submitted again", SECOND_POD | {'hiernas_held{pod="a", why="halted"}': "0+0x50 1+0x9 stale", 'hiernas_in_charge{pod="a"}': "1+0x58 0+0x1 stale"},
        {52: {"HiernasHalted"}, 61: {"HiernasHalted"}, 70: set(), 200: set()},
    ),
    Case(
        "a node fails attempts", {'hiernas_suspect_nodes{pod="a"}': "0+0x20 1+0x60 0+0x500"},
        {22: set(), 30: {"HiernasSuspectNodes"}, 79: {"HiernasSuspectNodes"}, 85: set()},
    ),
    Case(
        "the store fails", {'hiernas_store_requests_total{pod="a", operation="read", result="error"}': "0+0x20 0+20x30 600+0x400"},
        {20: set(), 28: set(), 45: {"HiernasStoreErrors"}, 80: set()},
    ),
    Case("GPU-hours run out", {'hiernas_gpu_seconds_open{pod="a"}': "200+0x20 301+0x400"}, {20: set(), 25: {"HiernasBudgetNearlyUsed"}}),
    Case("no budget", {'hiernas_gpu_seconds_limit{pod="a"}': "_x600", 'hiernas_gpu_seconds_open{pod="a"}': "9999+0x600"}, {25: set()}),
]  # fmt: skip


def played(case: Case) -> dict[str, Any]:
    """The case as promtool takes it. All alerts are asked for at once, so that none fires unexpectedly."""
    series = case.changes if case.whole else HEALTHY | case.changes
    labelled = {
        name.replace("{", '{namespace="n", run="r", ', 1) if "{" in name else name + '{namespace="n", run="r"}': values for name, values in series.items()
    }
    return {
        "name": case.says,
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in labelled.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname, namespace, run) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{alert}", namespace="n", run="r"}}', "value": 1} for alert in sorted(alerts)],
            }
            for minute, alerts in case.fires.items()
        ],
    }


def test_each_alert_fires_when_it_should_and_at_no_other_time(tmp_path: Path) -> None:
    assert {alert for case in CASES for alerts in case.fires.values() for alert in alerts} == ALERTS.keys()
    test = tmp_path / "cases.yaml"
    test.write_text(yaml.safe_dump({"rule_files": [str(rules_file(tmp_path))], "evaluation_interval": "1m", "tests": [played(case) for case in CASES]}))
    promtool("test", "rules", test)


def test_prometheus_accepts_the_configs_of_the_page(tmp_path: Path) -> None:
    configs = re.findall(r"^```yaml\n(.*?)^```$", make_metrics.PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(configs) == 2
    for config in configs:
        path = tmp_path / "prometheus.yaml"
        # Debian builds Prometheus without Kubernetes: of that config it checks all but where targets come from.
        path.write_text(config.replace("kubernetes_sd_configs: [{role: pod}]", 'static_configs: [{targets: ["127.0.0.1:9090"]}]'))
        promtool("check", "config", "--syntax-only", path)


# -- a real Prometheus


@dataclass(frozen=True)
class Scraped:
    """A search that has finished under the eyes of Prometheus."""

    store: DirectoryStore
    prometheus: Prometheus


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Scraped in the middle and at the end, so that there is an increase of everything."""
    folder = tmp_path_factory.mktemp("prometheus")
    store = DirectoryStore(folder / "store")
    counted = CountedStore(store)
    exporter = Exporter(NAME, counted)
    prometheus = Prometheus(folder, f"127.0.0.1:{exporter.serve(0, '127.0.0.1')}", rules_file(folder))
    try:
        steps = rounds(searcher(counted), exporter)
        for _, _ in zip(range(8), steps, strict=False):
            pass
        prometheus.until("hiernas_in_charge", 1)
        for _ in steps:
            time.sleep(0.02)  # a few scrapes on the way
        prometheus.until("hiernas_in_charge", 0)
        yield Scraped(store, prometheus)
    finally:
        prometheus.stop()
        exporter.close()


def test_what_prometheus_holds_in_the_end_is_what_the_records_say(scraped: Scraped) -> None:
    found = {}
    for one in scraped.prometheus.query('{__name__=~"hiernas_.*"}'):
        labels = {label: value for label, value in one["metric"].items() if label not in ("__name__", "job", "instance", "pod", "namespace")}
        found[one["metric"]["__name__"], frozenset(labels.items())] = float(one["value"][1])
    assert not any(label.startswith("exported_") for _, labels in found for label, _ in labels)
    found[at("sum of hiernas_workers")] = total(found, "hiernas_workers")
    for place, value in expected(scraped.store).items():
        assert found[place] == pytest.approx(value, abs=2e-3), place


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_shows_something(scraped: Scraped, query: str) -> None:
    assert scraped.prometheus.query(query.replace("$run", NAME)) or query.endswith("== 1")
    found = scraped.prometheus.query(query.replace("$run", ".+").removesuffix(" == 1"))
    assert found
    assert not any(one["value"][1] == "NaN" for one in found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_prometheus_computes_the_rule(scraped: Scraped, rule: dict[str, Any]) -> None:
    scraped.prometheus.query(rule["expr"])


def test_increase_sees_the_outcomes_that_came_while_it_looked(scraped: Scraped) -> None:
    assert (scraped.prometheus.value("sum(increase(hiernas_evaluations_total[1h]))") or 0) > 10
    assert scraped.prometheus.value("sum(resets(hiernas_evaluations_total[1h]))") == 0
    assert scraped.prometheus.value("sum(resets(hiernas_gpu_seconds_total[1h]))") == 0
