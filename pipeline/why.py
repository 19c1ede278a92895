"""`hiernas status --why`: why something waits, a line each, with what to do. Reads the cluster by the caller's own rights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pipeline import labels, observe
from pipeline.api import Api, ApiRefusal, path_of
from pipeline.executor import Job, JobStatus, Waiting
from pipeline.kubernetes import read_obstacles, read_refusals
from pipeline.plan import holds
from pipeline.trouble import SUSPECT_SECONDS, halted_by, suspects
from search.records import Release, ReleaseReason
from search.state import State

Object = dict[str, Any]
OVER_SECONDS = 300.0
"""After which a report that would have been repeated no longer holds; a try that hangs takes two minutes, the pause before it up to one."""
QUEUE_VERSIONS = ("v1beta2", "v1beta1")
"""Of Kueue's API, the newest first."""
_ADVICE = {
    Waiting.STARTING: "nothing to do",
    Waiting.UNSCHEDULABLE: "add nodes or free some; if none can ever fit, lower executor.gpus, threads or memory_gib, or correct cluster.worker_pod",
    Waiting.QUOTA: "raise the ResourceQuota of the namespace, or `hiernas set {run} workers=N` to what fits",
    Waiting.ADMISSION: "an admission rule of the cluster refuses the pod: correct cluster.worker_pod, or ask an administrator",
    Waiting.IMAGE: "correct cluster.worker_image and submit again, or give the nodes access to the registry (imagePullSecrets in cluster.worker_pod)",
    Waiting.POD: "correct cluster.worker_pod, cluster.store_secret or the volumes it names, and submit again",
    Waiting.SUSPENDED: 'a queue (Kueue) lets it run when there is quota; without one, whoever suspended it can resume it: kubectl patch job {job} -p \'{{"spec":{{"suspend":false}}}}\'',
}


class Told(NamedTuple):
    """What events tell, under the UID of their object; see pipeline.kubernetes."""

    refusals: Mapping[str, Sequence[str]]
    obstacles: Mapping[str, str]


def why(state: State, namespace: str, api: Api, now: float) -> list[str]:
    """The reasons found, the widest first; one line that says so if nothing waits."""
    told = Told(read_refusals(api, namespace), read_obstacles(api, namespace))
    found = [*_run(state), *_controller(state, namespace, api, now, told), *_nodes(state, now), *_jobs(state, namespace, api, now, told)]
    return found or ["nothing waits"]


def _run(state: State) -> Iterator[str]:
    name = state.run.name
    if state.moved is not None:
        yield f"the run was moved to {state.moved.to}: nothing happens here any more"
        return
    hold = holds(state, state.totals.gpu_seconds)
    if hold is not None:
        yield {
            "stopped": f"the run is stopped: `hiernas resume {name}`, then submit again, continues it",
            "paused": f"the run is paused: `hiernas resume {name}` goes on",
            "halted": f"the run is halted: {halted_by(state)}",
            "budget": f"max_gpu_hours is used up: `hiernas set {name} max_gpu_hours=…` goes on",
        }[hold]
    elif state.limits is not None and state.limits.workers == 0:
        yield f"workers is 0: `hiernas set {name} workers=N` goes on"


def _nodes(state: State, now: float) -> Iterator[str]:
    for node, count in suspects(state, now).items():
        last = max((end for _, end in state.troubles.values() if end.node == node), key=lambda end: end.stamp.at)
        yield (
            f"node {node} is avoided while the run works elsewhere: {count} attempts failed there within {SUSPECT_SECONDS / 60:.0f} minutes, the last "
            f"one {last.reason.value}: {last.message} — kubectl cordon {node}, and look at its GPUs, driver and disk; `hiernas resume {state.run.name}` tries it again at once"
        )


def _controller(state: State, namespace: str, api: Api, now: float, told: Told) -> Iterator[str]:
    name = labels.controller_name(state.run.name)
    last = state.controllers[-1] if state.controllers else None
    if isinstance(last, Release) and last.reason is not ReleaseReason.INTERRUPTED:
        return
    found: list[Object] = []
    try:
        job = api.get(path_of(namespace, "jobs", name))
        found = api.list(path_of(namespace, "pods"), labels.controller_of(state.run.name))
    except ApiRefusal as refusal:
        if refusal.status != 404:
            yield _may_not(refusal)
        elif (claim := state.last_claim) is not None and labels.namespace_of(claim.owner):  # else a controller outside of the cluster is at work
            yield f"no controller is in namespace {namespace!r} (Job {name} is not there): submit again, or start `hiernas run --executor kubernetes`"
        return
    pods = [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]
    yield from _events(state, namespace, api, observe.newest(pods), now)
    refusals = told.refusals.get(str(job["metadata"]["uid"]), [])
    if not pods:
        yield f"the controller has no pod: {refusals[-1] if refusals else 'it is not created yet'}" + (f" — {_ADVICE[Waiting.ADMISSION]}" if refusals else "")
        return
    seen = _see(job, pods, 0.0, told)
    if seen.status is JobStatus.PENDING and seen.waits is not None and (seen.waits is not Waiting.STARTING or not observe.restarts(pods[0])):
        yield f"the controller waits ({seen.waits}): {seen.message} — {_advice(seen, state.run.name).replace('worker', 'controller')}"
    elif seen.status is not JobStatus.RUNNING and (crash := observe.restarts(pods[0])):
        yield f"the controller ended and is started again and again; its last words: {crash} — kubectl -n {namespace} logs job/{name} tells more"


def _events(state: State, namespace: str, api: Api, pod: Object | None, now: float) -> Iterator[str]:
    """What the controller itself reported, as long as it holds: what it says again and again while it lasts is over once it falls silent,
    and what was said before the container began is over."""
    try:
        events = api.list(path_of(namespace, "events"), fieldSelector=f"involvedObject.kind=Lease,involvedObject.name={state.run.name}")
    except ApiRefusal:
        return
    newest = max(events, key=lambda one: str(one.get("lastTimestamp") or ""), default=None)
    if newest is None:
        return
    at = observe.seconds(newest.get("lastTimestamp")) or now
    began = observe.began(pod, labels.CONTROLLER) or at
    repeated = newest.get("reason") in (labels.UNAVAILABLE, labels.REFUSED)
    if at >= began - observe.SLACK_SECONDS and (not repeated or now - at < OVER_SECONDS):
        yield f"the controller reports ({newest.get('reason')}), {max(0.0, now - at) / 60:.0f} min ago: {newest.get('message')}"


def _jobs(state: State, namespace: str, api: Api, now: float, told: Told) -> Iterator[str]:
    selector = labels.workers_of(state.run.name)
    try:
        jobs = api.list(path_of(namespace, "jobs"), selector)
        pods = observe.by_job(api.list(path_of(namespace, "pods"), selector))
    except ApiRefusal as refusal:
        yield _may_not(refusal)
        return
    uids = {str(one["metadata"]["name"]): str(one["metadata"]["uid"]) for one in jobs}
    seen = [_see(one, pods.get(uid, []), now, told) for one, uid in zip(jobs, uids.values(), strict=True)]
    waiting = [job for job in seen if job.status is JobStatus.PENDING]
    given_up: set[str] = set()
    if any(job.waits is Waiting.SUSPENDED for job in waiting):
        queued, given_up = _queued(namespace, api)
        waiting = [replace(job, message=f"{job.message}; {queued[uids[job.name]]}") if uids[job.name] in queued else job for job in waiting]
        waiting.sort(key=lambda job: uids[job.name] not in queued)  # the one that is shown as an example is one that is explained
    gone = [job for job in waiting if uids[job.name] in given_up]
    if gone:
        waiting = [job for job in waiting if job not in gone]
        yield (
            f"{len(gone)} job{'s' if len(gone) > 1 else ''} never run{'' if len(gone) > 1 else 's'} again, for example {gone[0].name}: {gone[0].message} — "
            "mend what its queue names, then set `active: true` in its Workload (kubectl edit workload), or delete the Job: a new attempt follows"
        )
    for reason in sorted({job.waits for job in waiting if job.waits is not None}):
        some = [job for job in waiting if job.waits is reason]
        count = f"{len(some)} job{'s' if len(some) > 1 else ''} wait{'' if len(some) > 1 else 's'}"
        yield f"{count} ({reason}), for example {some[0].name}: {some[0].message} — {_advice(some[0], state.run.name)}"
    missing = [story.running.job for story in state.unfinished.values() if story.running and story.running.executor == "kubernetes"]
    absent = sorted(set(missing) - {job.name for job in seen})
    if absent:
        yield f"{len(absent)} attempt{'s' if len(absent) > 1 else ''} without a job, for example {absent[0]}: the controller creates it (again) as soon as it may"


def _see(found: Object, pods: Sequence[Object], now: float, told: Told) -> Job:
    """One job, and of a pod that does not start on its node also what the node says."""
    newest = observe.newest(pods)
    job = observe.job(found, newest, now, 1e9, observe.Seen(), told.refusals.get(str(found["metadata"]["uid"]), ()))
    obstacle = told.obstacles.get(str(newest["metadata"]["uid"])) if newest is not None else None
    if newest is None or obstacle is None or job.waits is not Waiting.STARTING or observe.set_up(newest) or observe.restarts(newest):
        return job
    return replace(job, waits=Waiting.POD, message=obstacle)


def _queued(namespace: str, api: Api) -> tuple[dict[str, str], set[str]]:
    """What a queue (Kueue) says of its Jobs, under their UIDs, and which it has given up: a suspended Job itself does not tell why it waits."""
    for served in QUEUE_VERSIONS:
        try:
            workloads = api.list(f"/apis/kueue.x-k8s.io/{served}/namespaces/{namespace}/workloads")
        except ApiRefusal:
            continue
        owned = {str(uid): one for one in workloads if (uid := (one["metadata"].get("labels") or {}).get(labels.QUEUED_JOB))}
        told = {uid: f"its queue says: {words}" for uid, one in owned.items() if (words := observe.queued(one))}
        return told, {uid for uid, one in owned.items() if observe.inactive(one)}
    return {}, set()


def _advice(job: Job, run: str) -> str:
    return _ADVICE[job.waits or Waiting.STARTING].format(run=run, job=job.name)


def _may_not(refusal: ApiRefusal) -> str:
    return f"what waits in the cluster cannot be read: {refusal.message} — ask for the right to read it (k8s/base shows which)"
