"""Runs in the image `store`, started by its server when that answers: makes the bucket, so that nobody else has to.

At each start, since the server does not remember a bucket that is still empty; a pod is ready only after this (/_ministack/ready).
Needs Python alone: the image holds no client.
"""

import os
import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit

MADE, THERE = 200, 409


def main() -> int:
    """Make the bucket that BUCKET names at AWS_ENDPOINT_URL, both set by who starts this; 1 if there is none then."""
    connection = HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc, timeout=10)
    connection.request("PUT", f"/{os.environ['BUCKET']}")
    answer = connection.getresponse()
    if answer.status in (MADE, THERE):
        return 0
    print(f"bucket {os.environ['BUCKET']!r} could not be made: {answer.status} {answer.read().decode(errors='replace')}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
