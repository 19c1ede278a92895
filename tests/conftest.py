"""What more than one test file needs."""

import os
from collections.abc import Iterator

import pytest
from s3_server import S3Server, environment


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the whole session: each test takes a prefix of its own. HIERNAS_TEST_S3=rgw: Ceph's (tests/rgw.py)."""
    server = S3Server()
    if os.environ.get("HIERNAS_TEST_S3") == "rgw":
        from rgw import Ceph

        server = Ceph(tmp_path_factory.mktemp("rgw"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The server, and the AWS environment pointed at it."""
    with environment(s3_server.url):
        yield s3_server
