"""A stand-in for the cluster's DNS, which the tests' own cluster lacks: names of headless Services, answered with the pods behind them.

As every cluster's DNS does it, and no more: `SERVICE.NAMESPACE.svc.cluster.local` has the addresses of the ready pods. Names of
Services with an address of their own would need a kube-proxy too, and are told to be absent.
"""

import json
import socket
import struct
import threading
from contextlib import suppress

from cluster import Cluster

PORT = 53
SUFFIX = ["svc", "cluster", "local"]
A, ABSENT = 1, 3
"""DNS: the type of a question for IPv4 addresses, and the code of a name that is not there."""


class Names:
    """Answers where pods ask, until `close`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((cluster.address, PORT))
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                question, who = self._socket.recvfrom(512)
                self._socket.sendto(self._answer(question), who)

    def _answer(self, question: bytes) -> bytes:
        labels, end = [], 12
        while length := question[end]:
            labels.append(question[end + 1 : end + 1 + length].decode().lower())
            end += 1 + length
        (kind,) = struct.unpack_from(">H", question, end + 1)
        addresses = self._addresses(labels)
        given = addresses if kind == A else []
        # An answer; authoritative; recursion as it was asked for, and available. Each record names its owner by the question's place.
        flags = 0x8480 | (question[2] & 1) << 8 | (0 if addresses else ABSENT)
        header = question[:2] + struct.pack(">HHHHH", flags, 1, len(given), 0, 0)
        records = b"".join(struct.pack(">HHHIH", 0xC00C, A, 1, 1, 4) + socket.inet_aton(one) for one in given)
        return header + question[12 : end + 5] + records

    def _addresses(self, labels: list[str]) -> list[str]:
        if len(labels) != 5 or labels[2:] != SUFFIX:
            return []
        service, namespace = labels[:2]
        found = self._cluster.kubectl(
            "-n", namespace, "get", "endpointslices", "-l", f"kubernetes.io/service-name={service},service.kubernetes.io/headless", "-o", "json"
        )
        slices = [one for one in json.loads(found)["items"] if one["addressType"] == "IPv4"]
        return [address for one in slices for end in one.get("endpoints") or [] if end["conditions"].get("ready") for address in end["addresses"]]
