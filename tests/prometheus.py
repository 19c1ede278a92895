"""A real Prometheus for one test, and its promtool."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

PATIENCE_SECONDS = 30.0


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found and not os.environ.get("CI"):
        pytest.skip(f"there is no {name}; Debian's package prometheus has it")
    assert found, f"{name} is missing: apt-get install --no-install-recommends prometheus (Debian), which need not run as a service"
    return found


def promtool(*arguments: str | Path) -> str:
    result = subprocess.run([tool("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


class Prometheus:
    """A server of one test alone, on a loopback port, that scrapes one exporter four times a second."""

    def __init__(self, folder: Path, target: str, rules: Path | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        config = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "1s"},
            "rule_files": [str(rules)] if rules is not None else [],
            "scrape_configs": [{"job_name": "hiernas", "static_configs": [{"targets": [target], "labels": {"pod": "small-controller", "namespace": "n"}}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        promtool("check", "config", folder / "prometheus.yaml")
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that a query gives now; fails if it is refused."""
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=20) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        assert found.get("warnings", []) == []
        vector: list[dict[str, Any]] = found["data"]["result"]
        return vector

    def value(self, expression: str) -> float | None:
        """The one value that a query gives; None before there is one."""
        found = self.query(expression)
        assert len(found) < 2
        return float(found[0]["value"][1]) if found else None

    def until(self, expression: str, value: float) -> None:
        """Wait until a query gives that value."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if self.value(expression) == value:
                    return
            except OSError:  # it has not begun to listen
                assert self._process.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline, expression
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()
