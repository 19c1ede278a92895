"""A real Ceph object gateway (RGW) as processes of its own on loopback: one monitor, one OSD (BlueStore in a sparse file), one radosgw.

Debian's packages, without systemd and without its configuration: all that they write is in the folder given. What an OSD
has acknowledged is on its disk, so the whole cluster may be killed and started again. `install()`, or `python tests/rgw.py`, installs what is missing.
"""

import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3_server import BUCKET, KEYS, S3Server, free_port

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw")
START_SECONDS = 120.0
"""Of one daemon, on a loaded machine; it takes some seconds on an idle one."""
CONFIG = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
auth cluster required = none
auth service required = none
auth client required = none
# radosgw asks for encryption by default, which there is none of without keys.
ms mon client mode = crc
run dir = {folder}
log file = {folder}/$name.log
pid file =
admin socket =
crash dir = {folder}
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
# One OSD: one copy of everything, few placement groups.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
# A file of this length without content; BlueStore would take 100 GiB.
bluestore block size = 8589934592
osd memory target = 1073741824
[client.rgw]
rgw frontends = beast endpoint={host}:{rgw_port}
rgw enable usage log = false
"""


def missing() -> list[str]:
    """Packages whose program is not there."""
    return [package for package in PACKAGES if shutil.which(package) is None] + (["ceph-common"] if shutil.which("radosgw-admin") is None else [])


def install() -> None:
    """Install what is missing, as root on Debian; none of Ceph's services is left running or enabled."""
    if missing():
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *PACKAGES], env=environment, check=True, stdout=subprocess.DEVNULL)
        units = ("ceph.target", "ceph-mon.target", "ceph-osd.target", "ceph-radosgw.target", "ceph-crash.service", "rbdmap.service")
        for act in ("stop", "disable"):  # the first fails where systemd does not run, as in a container
            subprocess.run(["systemctl", act, *units], check=False, capture_output=True)


def version() -> str:
    """As radosgw tells it: "ceph version 16.2.15 (…) pacific (stable)"."""
    return subprocess.run(["radosgw", "--version"], capture_output=True, text=True, check=True).stdout.strip()


class Ceph(S3Server):
    """See S3Server. `kill` kills radosgw alone, `kill_cluster` monitor and OSD; `start` starts whatever does not run."""

    folder: Path

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__(folder, host)
        self.config = folder / "ceph.conf"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Return when it answers and has user and bucket."""
        if not self.config.exists():
            self._make()
        self._daemon("mon", "ceph-mon", "--id", "a")
        self._daemon("osd", "ceph-osd", "--id", "0")
        if not (self.folder / "user").exists():
            self._admin("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", "--access-key=test", "--secret-key=test")  # KEYS
            (self.folder / "user").touch()
        self._daemon("rgw", "radosgw", "--name", "client.rgw")
        until = time.monotonic() + START_SECONDS
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            config=Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1}),
        )
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)  # makes it, or finds it there
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > until or any(process.poll() is not None for process in self._running.values()):
                    raise RuntimeError(f"Ceph did not start: {error}; its logs are in {self.folder}") from error
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL of radosgw: nothing is tidied up, what it was doing is half done."""
        self._end("rgw")

    def kill_cluster(self) -> None:
        """SIGKILL of OSD and monitor at once; radosgw goes on without them."""
        self._end("osd", "mon")

    def stop(self) -> None:
        """All of it, at once."""
        self._end("rgw", "osd", "mon")

    def _make(self) -> None:
        """An empty cluster: monitor and OSD with nothing in them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fsid, port, osd = str(uuid.uuid4()), free_port(), str(uuid.uuid4())
        text = CONFIG.format(fsid=fsid, port=port, folder=self.folder, host=self.host, rgw_port=self.port)
        draft = self.folder / "draft.conf"
        draft.write_text(text)
        monmap = self.folder / "monmap"
        self._admin("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", str(monmap), config=draft)
        self._admin("ceph-mon", "--mkfs", "--id", "a", "--monmap", str(monmap), config=draft)
        draft.rename(self.config)
        self._daemon("mon", "ceph-mon", "--id", "a")
        self._admin("ceph", "osd", "new", osd)
        (self.folder / "osd").mkdir()
        self._admin("ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", osd)

    def _admin(self, *command: str, config: Path | None = None) -> None:
        with_config = [*command, "--conf", str(config or self.config)]
        done = subprocess.run(with_config, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")

    def _daemon(self, name: str, *command: str) -> None:
        if name not in self._running:
            with_config = [*command, "--conf", str(self.config), "--foreground"]
            self._running[name] = subprocess.Popen(with_config, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _end(self, *names: str) -> None:
        ended = [self._running.pop(name) for name in names if name in self._running]
        for process in ended:
            process.kill()
        for process in ended:
            process.wait()


if __name__ == "__main__":
    install()
    sys.exit(f"still missing: {', '.join(missing())}" if missing() else 0)
