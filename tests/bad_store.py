"""A store that `hiernas doctor` must refuse: moto's server, as it comes, whose create-only writes are not atomic.

Run as a program it measures how often it is refused: `python tests/bad_store.py 30`. A race that finds nothing proves nothing, so this is a share.
"""

import platform
import secrets
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from urllib.request import Request, urlopen

from s3_server import BUCKET, S3Server, environment, free_port

from pipeline.doctor import probe
from pipeline.doctor.checks import Verdict

SERVERS = Path(__file__).parents[1] / ".venv/servers"


class Moto:
    """A fresh one, with the bucket."""

    def __init__(self) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self.url = f"http://{self.host}:{self.port}"
        command = [SERVERS / "bin/moto_server", "-H", self.host, "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while True:
            try:
                urlopen(Request(f"{self.url}/{BUCKET}", method="PUT"), timeout=5).close()
                return
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    self.kill()
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """At once."""
        self._process.kill()
        self._process.wait()


def refused(server: Moto | S3Server) -> bool:
    """Whether doctor's race finds it out."""
    with environment(server.url):
        return probe.create_only(f"s3://{BUCKET}/p", f"{probe.FOLDER}/{secrets.token_hex(4)}").verdict is Verdict.FAILED


def main() -> None:
    """So many fresh servers of the bad kind, and as many races on the good one."""
    count = int(sys.argv[1])
    path = [str(one) for one in SERVERS.glob("lib/python*/site-packages")]
    version = {one.name: one.version for one in distributions(path=path)}
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, moto {version['moto']}, ministack {version['ministack']}: python tests/bad_store.py {count}")
    print(f"{probe.WRITERS} writers of {probe.KEYS} keys, then {probe.LARGE_WRITERS} of {probe.LARGE_KEYS} keys of {probe.LARGE_BYTES} bytes")
    found = 0
    for _ in range(count):
        moto = Moto()
        try:
            found += refused(moto)
        finally:
            moto.kill()
    print(f"moto (not atomic): refused {found} of {count}", flush=True)
    good = S3Server()
    good.start()
    try:
        print(f"ministack (atomic): refused {sum(refused(good) for _ in range(count))} of {count}")
    finally:
        good.kill()


if __name__ == "__main__":
    main()
