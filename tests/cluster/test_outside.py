"""A controller outside of the cluster (a kubeconfig), and one inside: the one gives way to the other only when told to."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from conftest import NAMESPACE, Site, until

from search.records import Claim, Release, ReleaseReason

RUN = "outside"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is undone at the end, however that comes."""
    with ExitStack() as stack:
        yield stack


def test_a_search_goes_from_a_laptop_into_the_cluster_while_it_runs(site: Site, stack: ExitStack) -> None:
    recipe = {"extends": "digits-small", "steps": 40, "milestones": [30], "curve_points": 2}
    config = site.config(RUN, recipe=recipe, limits={"max_evaluations": 6, "workers": 2})

    def laptop(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline.cli", "run", str(config), "--store", site.store_url(RUN), *more]
        return stack.enter_context(subprocess.Popen(command, env=os.environ | site.environment, cwd=site.folder, stderr=subprocess.PIPE, text=True))

    first = laptop()
    stack.callback(first.kill)
    until("the run", lambda: site.hiernas("status", RUN, "--store", site.store_url(RUN), check=False).returncode == 0)
    until("a first outcome", lambda: site.status(RUN)["evaluated"] > 0)
    refused = site.hiernas("submit", str(config), "--store", site.store_url(RUN), check=False)
    assert refused.returncode == 3
    assert "--take-over" in refused.stderr
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 0, said
    assert "jobs go on in the cluster" in said
    assert isinstance(released := site.state(RUN).controllers[-1], Release)
    assert released.reason is ReleaseReason.INTERRUPTED
    changed = site.config(RUN, seed=8, recipe=recipe)
    refused = site.hiernas("submit", str(changed), "--store", site.store_url(RUN), check=False)
    assert (refused.returncode, "seed: 7 → 8" in refused.stderr) == (2, True)
    config = site.config(RUN, recipe=recipe, limits={"max_evaluations": 6, "workers": 2})

    second = laptop()  # goes on where the first one left
    stack.callback(second.kill)
    until("its claim", lambda: isinstance(site.state(RUN).controllers[-1], Claim))
    assert "started" in site.hiernas("submit", str(config), "--store", site.store_url(RUN), "--take-over").stdout
    said = second.communicate(timeout=90)[1]
    assert second.returncode == 3, said
    state = site.finished(RUN)
    assert len(state.history) == 6
    owners = [one.owner for one in state.controllers if isinstance(one, Claim)]
    assert "@cluster-" in owners[-1]
    assert not any("@cluster-" in owner for owner in owners[:-1])
    assert not state.totals.ends  # no attempt was lost on the way from one to the other
    site.cluster.kubectl("-n", NAMESPACE, "delete", "lease", RUN)
