"""A search on a real cluster, as its user would have it: submit, watch, verify, report, remove."""

from pathlib import Path

from conftest import NAMESPACE, Site, until
from prometheus import Prometheus

from pipeline.manifest import METRICS_PORT
from search.state import State

RUN = "plain"


def numbers(state: State) -> dict[str, float]:
    """What Prometheus must hold in the end, by the records."""
    return {
        'hiernas_evaluations_total{outcome="evaluated"}': len(state.history),
        "sum(hiernas_evaluations_total)": len(state.history),
        "sum(hiernas_attempts_total)": sum(state.totals.ends.values()),
        "hiernas_best_fitness": max(outcome.fitness or 0.0 for outcome in state.history),
        "hiernas_in_flight": 0,
        "sum(hiernas_workers)": 0,
        "hiernas_workers_limit": 2,
        'hiernas_phase_duration_seconds_count{phase="train"}': len(state.history),
        "hiernas_in_charge": 0,
    }


def test_a_submitted_search_runs_to_its_end_and_leaves_nothing_but_its_records(site: Site, tmp_path: Path) -> None:
    said = site.submit(RUN)
    assert "its controller is started" in said
    pods = until("the controller's address", lambda: [
        pod for pod in site.objects("pods", f"hiernas/run={RUN},app.kubernetes.io/component=controller") if pod["status"].get("podIP")
    ])  # fmt: skip
    with site.address(pods[0], METRICS_PORT) as address:
        prometheus = Prometheus(tmp_path, address)
        try:
            state = site.finished(RUN)
            for expression, number in numbers(state).items():
                prometheus.until(expression, number)
            assert (prometheus.value("max_over_time(sum(hiernas_workers)[10m:1s])") or 0) in (1, 2)
        finally:
            prometheus.stop()
    assert [outcome.outcome.value for outcome in state.history] == ["evaluated"] * 5, [story.ends for story in state.stories]
    assert not any(story.ends for story in state.stories)
    site.hiernas("report", RUN, "--store", site.store_url(RUN), "--out", "report")
    assert (site.folder / "report" / "report.html").stat().st_size > 10_000
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", RUN)
    for kind in ("jobs", "configmaps", "pods"):
        until(f"no {kind} of the run", lambda kind=kind: not site.objects(kind, f"hiernas/run={RUN}"), 60)
    assert "is whole" in site.hiernas("verify", RUN, "--store", site.store_url(RUN)).stdout
