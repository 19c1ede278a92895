"""What more than one test file needs."""

from collections.abc import Iterator

import pytest
from s3_server import S3Server, environment


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for the whole session: each test takes a prefix of its own."""
    server = S3Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The server, and the AWS environment pointed at it."""
    with environment(s3_server.url):
        yield s3_server
