"""A run begun on this machine, in a directory, is copied to the bucket and continues on the cluster."""

import yaml
from conftest import NAMESPACE, Site

RUN = "moved"


def test_a_run_begun_on_a_laptop_continues_on_the_cluster(site: Site) -> None:
    config = site.config(RUN, limits={"max_evaluations": 3, "workers": 2})
    site.hiernas("run", str(config), "--store", "local", "--executor", "processes")
    here = yaml.safe_load(site.hiernas("status", RUN, "--store", "local", "--json").stdout)
    assert (here["state"], here["evaluated"]) == ("finished", 3)
    site.hiernas("copy", RUN, "--store", "local", "--to", site.store_url(RUN))
    refused = site.hiernas("run", str(config), "--store", "local", "--executor", "processes", check=False)
    assert refused.returncode == 2
    assert site.store_url(RUN) in refused.stderr
    site.submit(RUN, limits={"max_evaluations": 5, "workers": 2})
    state = site.finished(RUN)
    assert state.history[2].previous is not None
    assert len(state.history) == 5
    assert [state.stories[number].attempts[0].executor for number in range(5)] == ["processes"] * 3 + ["kubernetes"] * 2
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", RUN)
