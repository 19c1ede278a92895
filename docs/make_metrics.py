"""Writes docs/metrics.md from what the exporter, the alerts and the dashboard say of themselves: `make docs`."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from described import table

from pipeline.metrics import METRICS, Description

PAGE = Path(__file__).parent / "metrics.md"
MONITORING = PAGE.parent.parent / "k8s" / "monitoring"

_HEAD = """# Metrics

*Made by `docs/make_metrics.py` (`make docs`) from `pipeline/metrics.py` and `k8s/monitoring`; a test compares. Edit there.*

A controller serves Prometheus metrics at `/metrics`, and at `/healthz` whether its loop goes on (200, or 503 when no round has
begun for five minutes), at `/readyz` whether it has not stopped for an error that a restart would hardly cure (its pod is then not ready,
and `hiernas status RUN --why` says for what). Every number is computed from the run's records after each round. So counters never fall, and a restarted
controller goes on counting where the run is; only the histograms and the requests to the store begin anew with each controller.
No metric has a label per candidate: how many series a run has does not depend on its length.

## Scraping

**In a cluster with the Prometheus Operator**, an administrator installs scraping, alerts and dashboard once, beside `k8s/base`:

```sh
kubectl apply -k k8s/monitoring
```

Where the operator takes only objects with a certain label (kube-prometheus-stack: `release`), add it in
`k8s/monitoring/kustomization.yaml`. The dashboard is a ConfigMap with the label `grafana_dashboard: "1"`, which Grafana's sidecar
collects; otherwise import `k8s/monitoring/dashboard.json` by hand.

**In a cluster with a plain Prometheus**: what stands under `spec` in `k8s/monitoring/rules.yaml` is its rules file, and this scrapes
every controller. Keep the interval (a finished run's last numbers stay up for 45 seconds), and the labels `namespace` and `pod`
(the alerts need them):

```yaml
scrape_configs:
  - job_name: hiernas
    scrape_interval: 15s
    kubernetes_sd_configs: [{role: pod}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_name], regex: hiernas-controller, action: keep}
      - {source_labels: [__meta_kubernetes_pod_container_port_name], regex: metrics, action: keep}
      - {source_labels: [__meta_kubernetes_pod_phase], regex: Pending|Succeeded|Failed, action: drop}
      - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
```

**On one machine**: `hiernas run CONFIG --metrics-port 9090` serves them on 127.0.0.1 for as long as the command runs, all but
`hiernas_store_requests_total`:

```yaml
scrape_configs:
  - job_name: hiernas
    scrape_interval: 15s
    static_configs: [{targets: ["127.0.0.1:9090"]}]
```"""

_METRICS = """## The metrics

Every one carries the label `run`, the run's name; Prometheus adds `namespace` and `pod`. Two namespaces may have a run of the same
name, and after a restart two pods may show the same run for a moment: add up over `run` only what `rate` or `increase` made, and take
`max by (namespace, run, …)` of all else."""

_QUERIES = """## The dashboard, and the queries worth knowing

The panels of `k8s/monitoring/dashboard.json`, in the order in which one reads them. Each query stands here without the selection of
a run (`{run=~"$run"}`), so that it can be tried as it is. The page was laid out without a Grafana to look at: its queries are run
against a real Prometheus by the tests, its looks are not tested.

The first row answers whether the search gets on: outcomes in the last hour as one large number, beside it the same over time by kind,
then how much is done, the best fitness, and what holds the run if something does. The second row answers why not faster: workers
busy of those allowed, and what the others wait for. The third is what it costs, the fourth where an attempt's time goes, the last
what goes wrong. Two variables are at the top: the Prometheus, and the runs."""

_ALERTS = """## The alerts

Of `k8s/monitoring/rules.yaml`. Each has its paragraph in [Operations](operations.md#alerts): what it means, and what to do.

While a run is held (paused, stopped, halted, out of budget), it is not expected to get on, and nothing says that it does not."""


def _labels(one: Description) -> str:
    return "; ".join(f"`{label}`" + (": " + ", ".join(f"`{value}`" for value in values) if values else "") for label, values in one.labels.items())


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels."""
    found: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    return found


def rules() -> list[dict[str, Any]]:
    """The alerts and what they are computed from."""
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def plain(query: str) -> str:
    """A panel's query of every run."""
    return query.replace('{run=~"$run"}', "").replace('run=~"$run", ', "")


def page() -> str:
    """The whole of docs/metrics.md."""
    metrics = [[f"`{one.name}`", one.kind, one.unit, _labels(one), one.meaning] for one in METRICS.values()]
    queries = [[panel["title"], panel["description"], "<br>".join(f"`{plain(target['expr'])}`" for target in panel["targets"])] for panel in panels()]
    alerts = [
        [
            f"[{rule['alert']}](operations.md#{rule['alert'].lower()})",
            rule["labels"]["severity"],
            re.sub(r"{{.*?}}", "…", rule["annotations"]["summary"]),
        ]
        for rule in rules()
        if "alert" in rule
    ]
    lines = [_HEAD, "", _METRICS, "", *table(["name", "type", "unit", "labels and their values", "meaning"], metrics)]
    lines += ["", _QUERIES, "", *table(["panel", "what it shows", "query"], queries)]
    lines += ["", _ALERTS, "", *table(["alert", "severity", "says"], alerts)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.name}")
