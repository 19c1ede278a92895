"""`hiernas doctor` on rights: each that a run needs, asked of the API server one by one (SubjectAccessReviews; nothing is stored)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.api import Api, ApiRefusal
from pipeline.cluster import ClusterConfig
from pipeline.doctor import checks
from pipeline.doctor.checks import Check

Object = dict[str, Any]
_AUTHORIZATION = "/apis/authorization.k8s.io/v1"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one kind of object, within a namespace."""

    verb: str
    group: str
    resource: str
    """With its part after '/', as a Role names it: pods/log."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


def _rights(group: str, resource: str, verbs: str) -> list[Right]:
    return [Right(verb, group, resource) for verb in verbs.split()]


_LEASES, _BATCH = "coordination.k8s.io", "batch"
CALLER = [*_rights(_LEASES, "leases", "get create"), *_rights("", "configmaps", "get create update delete"), *_rights(_BATCH, "jobs", "get create delete")]
"""What `hiernas submit` does. It deletes no ConfigMap, but some clusters (OpenShift) let only those who may name an owner in one."""
CALLER_HELPFUL = [*_rights(_LEASES, "leases", "delete"), *_rights(_BATCH, "jobs", "list"), *_rights("", "pods", "list"), *_rights("", "events", "list")]
"""Removing a run, `hiernas status --why`."""
CONTROLLER = [*_rights(_BATCH, "jobs", "create get list delete"), *_rights("", "pods", "list"), *_rights(_LEASES, "leases", "get")]
"""Without one of these no search goes on."""
CONTROLLER_HELPFUL = _rights("", "events", "create list")
"""The rest of k8s/base/role.yaml: why a Job gets no pod, and what a person is told."""
_APPLY = "an administrator applies k8s/base to the namespace again"


def of_caller(api: Api, cluster: ClusterConfig) -> Iterator[Check]:
    """What the user of this kubeconfig may do."""
    who = str(
        ((api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", _review("authentication", {})).get("status") or {}).get("userInfo") or {}).get(
            "username"
        )
    )

    def allowed(right: Right) -> bool:
        return _allowed(api, "selfsubjectaccessreviews", {"resourceAttributes": _attributes(right, cluster.namespace)})

    yield from _judge(
        "your rights", f"{who!r} in namespace {cluster.namespace!r}", CALLER, CALLER_HELPFUL, allowed, "ask an administrator for a Role with these"
    )


def of_controller(api: Api, cluster: ClusterConfig) -> Iterator[Check]:
    """What the controller's service account may do: asked, or, without the right to ask, read from the Roles of the namespace."""
    name, who = "controller's rights", f"service account {cluster.controller_account!r}"
    user = f"system:serviceaccount:{cluster.namespace}:{cluster.controller_account}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{cluster.namespace}", "system:authenticated"]

    def allowed(right: Right) -> bool:
        return _allowed(api, "subjectaccessreviews", {"user": user, "groups": groups, "resourceAttributes": _attributes(right, cluster.namespace)})

    try:
        yield from list(_judge(name, who, CONTROLLER, CONTROLLER_HELPFUL, allowed, _APPLY))
    except ApiRefusal as refusal:
        if refusal.status != 403:
            raise
        rules, whole = _rules(api, cluster, {user, *groups})
        told = list(_judge(name, f"{who}, by the Roles of the namespace,", CONTROLLER, CONTROLLER_HELPFUL, lambda right: _covered(right, rules), _APPLY))
        hidden = "a ClusterRole may give them: you may neither ask (create subjectaccessreviews) nor read all of those"
        yield from told if whole or told[0].verdict is checks.Verdict.OK else [checks.unknown(one.name, f"{one.found}; {hidden}", one.do) for one in told]


def _judge(name: str, who: str, needed: Sequence[Right], helpful: Sequence[Right], allowed: Callable[[Right], bool], do: str) -> Iterator[Check]:
    lacking = [right for right in needed if not allowed(right)]
    missed = [right for right in helpful if not allowed(right)]
    if lacking:
        yield checks.failed(name, f"{who} may not: {', '.join(map(str, lacking))}", do)
    if missed:
        yield checks.warning(name, f"{who} may not: {', '.join(map(str, missed))}; a search works without, but tells less", do)
    if not lacking and not missed:
        yield checks.ok(name, f"{who} has all {len(needed) + len(helpful)}")


def _review(group: str, spec: Object, kind: str = "SelfSubjectReview") -> Object:
    return {"apiVersion": f"{group}.k8s.io/v1", "kind": kind, "spec": spec} if spec else {"apiVersion": f"{group}.k8s.io/v1", "kind": kind}


def _allowed(api: Api, reviews: str, spec: Object) -> bool:
    kind = {"selfsubjectaccessreviews": "SelfSubjectAccessReview", "subjectaccessreviews": "SubjectAccessReview"}[reviews]
    return bool((api.create(f"{_AUTHORIZATION}/{reviews}", _review("authorization", spec, kind)).get("status") or {}).get("allowed"))


def _attributes(right: Right, namespace: str) -> Object:
    resource, _, part = right.resource.partition("/")
    return {"namespace": namespace, "verb": right.verb, "group": right.group, "resource": resource} | ({"subresource": part} if part else {})


# -- reading Roles, where nobody may be asked


def _rules(api: Api, cluster: ClusterConfig, names: set[str]) -> tuple[list[Object], bool]:
    """Rules bound to the account, and whether that is all of them."""
    rules: list[Object] = []
    whole = True
    for path in (f"{_RBAC}/namespaces/{cluster.namespace}/rolebindings", f"{_RBAC}/clusterrolebindings"):
        try:
            bindings = api.list(path)
        except ApiRefusal:
            if "cluster" not in path.rpartition("/")[2]:
                raise
            whole = False
            continue
        for binding in bindings:
            if not any(_is(subject, cluster, names) for subject in binding.get("subjects") or []):
                continue
            role = binding["roleRef"]
            place = f"{_RBAC}/clusterroles" if role["kind"] == "ClusterRole" else f"{_RBAC}/namespaces/{cluster.namespace}/roles"
            try:
                rules += api.get(f"{place}/{role['name']}").get("rules") or []
            except ApiRefusal:
                whole = False
    return rules, whole


def _is(subject: Object, cluster: ClusterConfig, names: set[str]) -> bool:
    if subject.get("kind") == "ServiceAccount":
        return (subject.get("name"), subject.get("namespace")) == (cluster.controller_account, cluster.namespace)
    return subject.get("name") in names


def _covered(right: Right, rules: Sequence[Object]) -> bool:
    return any(
        not rule.get("resourceNames")
        and {right.group, "*"} & set(rule.get("apiGroups") or [])
        and {right.resource, "*"} & set(rule.get("resources") or [])
        and {right.verb, "*"} & set(rule.get("verbs") or [])
        for rule in rules
    )
