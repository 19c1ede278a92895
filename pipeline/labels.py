"""Every label, annotation and name that our objects carry in a cluster. Users select by them: never rename one."""

import re

RUN = "hiernas/run"
"""Label: name of the run."""
CANDIDATE = "hiernas/candidate"
"""Label: index of the candidate."""
ATTEMPT = "hiernas/attempt"
"""Label: number of the attempt."""
RUN_ID = "hiernas/run-id"
"""Annotation: random id of the run: two runs of one name in two stores are not the same."""
STORE = "hiernas/store"
"""Annotation: URL of the store that holds the run."""
DIGEST = "hiernas/attempt-digest"
"""Annotation of a worker's Job: SHA-256 of the record that decided on it."""
SETTINGS = "hiernas/settings-digest"
"""Annotation of a worker's Job: SHA-256 of the config's section `cluster` that it was made with."""
CONFIG_DIGEST = "hiernas/config-digest"
"""Annotation of the controller's Job: SHA-256 of the objects it was made with; another one replaces the controller."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Kueue's label: the LocalQueue of a Job."""
QUEUED_JOB = "kueue.x-k8s.io/job-uid"
"""Kueue's label of a Workload: UID of its Job."""

PART = "hiernas"
UNAVAILABLE, REFUSED = "Unavailable", "Refused"
"""Reasons of the events that a controller repeats for as long as they hold."""
CONTROLLER, WORKER = "controller", "worker"
"""Components."""
STAY = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""Annotations that keep autoscalers from moving a pod."""

_IN_CLUSTER = "@cluster-"


def common(run: str, component: str, version: str) -> dict[str, str]:
    """Labels of every object of a run."""
    return {
        "app.kubernetes.io/name": f"{PART}-{component}",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": PART,
        "app.kubernetes.io/managed-by": PART,
        "app.kubernetes.io/version": re.sub(r"[^A-Za-z0-9_.-]", "-", version)[:63].strip("-_.") or "unknown",
        RUN: run,
    }


def lease_name(run: str) -> str:
    """The object that owns everything of a run in the cluster."""
    return run


def controller_name(run: str) -> str:
    """Its Job and its ConfigMap."""
    return f"{run}-controller"


def pod_owner(namespace: str, run: str, authority: str) -> str:
    """Owner of a claim that a controller's pod makes. `authority`: tells clusters apart."""
    return f"{namespace}/{run}{_IN_CLUSTER}{authority}"


def namespace_of(owner: str) -> str | None:
    """The namespace of the pod whose claim has this owner; None: it is no pod's."""
    return owner.partition("/")[0] if _IN_CLUSTER in owner else None


def workers_of(run: str) -> str:
    """Selector of a run's worker Jobs and pods."""
    return f"{RUN}={run},app.kubernetes.io/component={WORKER}"


def controller_of(run: str) -> str:
    """Selector of a run's controller and its pods."""
    return f"{RUN}={run},app.kubernetes.io/component={CONTROLLER}"
