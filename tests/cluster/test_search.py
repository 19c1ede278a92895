"""A search on a real cluster, as its user would have it: submit, watch, verify, report, remove."""

from conftest import NAMESPACE, Site, until

from search.records import EndReason


def test_a_submitted_search_runs_to_its_end_and_leaves_nothing_but_its_records(site: Site) -> None:
    said = site.submit("plain")
    assert "its controller is started" in said
    state = site.finished("plain")
    assert [outcome.outcome.value for outcome in state.history] == ["evaluated"] * 5, [story.ends for story in state.stories]
    assert not any(story.ends for story in state.stories)
    site.hiernas("report", "plain", "--store", site.store_url("plain"), "--out", "report")
    assert (site.folder / "report" / "report.html").stat().st_size > 10_000
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", "plain")
    for kind in ("jobs", "configmaps", "pods"):
        until(f"no {kind} of the run", lambda kind=kind: not site.objects(kind, "hiernas/run=plain"), 60)
    assert "is whole" in site.hiernas("verify", "plain", "--store", site.store_url("plain")).stdout
    assert EndReason.GONE not in state.totals.ends
