"""Whom the S3 store trusts and as whom it comes: an own authority's certificates, a cloud's roles for pods, and no headers that others' servers refuse."""

import json
import os
import secrets
import ssl
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from s3_server import BUCKET, Exchange, Listener, Proxy, S3Server, environment

from pipeline import s3 as s3_module
from pipeline.errors import StoreUnavailable
from pipeline.s3 import S3Store
from pipeline.store import KEYS_VARIABLE

ROLE = "arn:aws:iam::123456789012:role/hiernas"
TOKEN = "token-of-the-service-account"
STRANGE = ("x-amz-checksum-", "x-amz-trailer", "x-amz-sdk-checksum-", "transfer-encoding")
"""Beginnings of headers by which newer SDKs send checksums: many stores refuse them, or keep the chunks' frame as if it were data."""


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates and keys that this machine has for other ends; AWS_* sets environment() aside."""
    for name in ("REQUESTS_CA_BUNDLE", KEYS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(s3_module, "PAUSE_SECONDS", 0.001)


@contextmanager
def watched(server: S3Server, tls: ssl.SSLContext | None = None) -> Iterator[tuple[Proxy, list[Exchange]]]:
    """A proxy that writes down what passes, and the AWS environment pointed at it."""
    passed: list[Exchange] = []
    proxy = Proxy(server, passed.append, tls=tls)
    try:
        with environment(proxy.url):
            yield proxy, passed
    finally:
        proxy.close()


def use(tmp_path: Path) -> S3Store:
    """Each kind of request that a search makes."""
    store = S3Store(BUCKET, f"identity-{secrets.token_hex(6)}")
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(secrets.token_bytes(100_000))
    assert store.create("a", b"1") == b"1"
    assert store.create("a", b"2") == b"1"
    assert store.read("a") == b"1"
    assert store.list("") == ["a"]
    store.put_file("_datasets/x/train.safetensors", source)
    store.get_file("_datasets/x/train.safetensors", copy)
    assert copy.read_bytes() == source.read_bytes()
    store.create("_doctor/probe", b"3")
    assert store.discard("_doctor/probe")
    return store


def header(exchange: Exchange, name: str) -> str:
    return next((value for given, value in exchange.headers.items() if given.lower() == name.lower()), "")


def signers(passed: list[Exchange]) -> set[tuple[str, str]]:
    """Access key and session token of each request."""
    return {(header(one, "Authorization").partition("Credential=")[2].partition("/")[0], header(one, "X-Amz-Security-Token")) for one in passed}


# -- HTTPS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """An own authority's certificate, and what a server at 127.0.0.1 needs that it has signed for."""
    folder = tmp_path_factory.mktemp("authority")
    (folder / "ca.txt").write_text(
        "[req]\nprompt=no\ndistinguished_name=name\nx509_extensions=own\n[name]\nCN=our own authority\n"
        "[own]\nbasicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n"
    )
    (folder / "server.txt").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:false\nauthorityKeyIdentifier=keyid\n")
    fresh = "-newkey rsa:2048 -nodes"
    for command in (
        f"req -x509 {fresh} -keyout ca.key -out ca.pem -days 2 -config ca.txt",
        f"req {fresh} -keyout server.key -out server.request -subj /CN=store",
        "x509 -req -in server.request -CA ca.pem -CAkey ca.key -set_serial 1 -days 2 -extfile server.txt -out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return folder / "ca.pem", context


def test_a_certificate_of_an_unknown_authority_is_refused_at_once_with_what_to_do(s3_server: S3Server, authority: tuple[Path, ssl.SSLContext]) -> None:
    with watched(s3_server, authority[1]) as (proxy, passed):
        with pytest.raises(StoreUnavailable, match="AWS_CA_BUNDLE"):
            S3Store(BUCKET, "untrusted")
        assert (proxy.connections, passed) == (1, [])  # asking again does not help, and nothing was told to a stranger


def test_a_file_of_authorities_that_is_not_there_is_named(s3_server: S3Server, authority: tuple[Path, ssl.SSLContext], tmp_path: Path) -> None:
    with watched(s3_server, authority[1]):
        os.environ["AWS_CA_BUNDLE"] = str(tmp_path / "absent.pem")
        with pytest.raises((StoreUnavailable, OSError), match=r"absent\.pem, which is no file here"):
            S3Store(BUCKET, "untrusted")


def test_an_own_authoritys_certificate_is_accepted_by_its_file(s3_server: S3Server, authority: tuple[Path, ssl.SSLContext], tmp_path: Path) -> None:
    with watched(s3_server, authority[1]) as (proxy, passed):
        os.environ["AWS_CA_BUNDLE"] = str(authority[0])
        use(tmp_path)
    assert proxy.url.startswith("https://")
    assert len(passed) > 5


# -- roles


class Issuer:
    """Who gives out keys: STS, and the agent on a node. It writes down what it was asked; its n-th keys are KEY<n>."""

    def __init__(self, seconds: float = 3600) -> None:
        self.asked: list[dict[str, str]] = []
        """Parameters of each request, and its header Authorization."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                issuer.asked.append(dict(urllib.parse.parse_qsl(body)) | {"Authorization": self.headers.get("Authorization", "")})
                end = f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"
                keys = {"AccessKeyId": f"KEY{len(issuer.asked)}", "SecretAccessKey": "secret", "SessionToken": f"SESSION{len(issuer.asked)}", "Expiration": end}
                if self.command == "GET":
                    answer = json.dumps(keys | {"Token": keys["SessionToken"]})
                else:
                    inner = "".join(f"<{name}>{value}</{name}>" for name, value in keys.items())
                    action = "AssumeRoleWithWebIdentity"
                    answer = f"<{action}Response><{action}Result><Credentials>{inner}</Credentials></{action}Result></{action}Response>"
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            do_GET = do_POST = _answer

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        listener = Listener(HTTPServer(("127.0.0.1", 0), Handler))
        self.url, self.close = listener.url, listener.close


def become(way: str, issuer: Issuer, token: Path) -> None:
    """The variables that EKS gives to pods with a role, and no keys."""
    token.write_text(TOKEN)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del os.environ[name]
    if way == "IRSA":
        given = {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ENDPOINT_URL_STS": issuer.url}
    else:
        given = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{issuer.url}/v1/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token)}
    os.environ.update(given)


@pytest.mark.parametrize("way", ["IRSA", "Pod Identity"])
def test_a_role_gives_the_keys_that_sign_every_request(s3_server: S3Server, tmp_path: Path, way: str) -> None:
    issuer = Issuer()
    try:
        with watched(s3_server) as (_, passed):
            become(way, issuer, tmp_path / "token")
            use(tmp_path)
    finally:
        issuer.close()
    assert signers(passed) == {("KEY1", "SESSION1")}
    (asked,) = issuer.asked  # once, not for each request
    if way == "IRSA":
        assert (asked["Action"], asked["RoleArn"], asked["WebIdentityToken"]) == ("AssumeRoleWithWebIdentity", ROLE, TOKEN)
    else:
        assert asked["Authorization"] == TOKEN


@pytest.mark.parametrize("way", ["IRSA", "Pod Identity"])
def test_keys_of_a_role_that_run_out_are_renewed_with_the_token_of_that_time(s3_server: S3Server, tmp_path: Path, way: str) -> None:
    """Kubernetes renews the token's file; keys with a minute left are renewed before each request."""
    issuer = Issuer(seconds=60)
    try:
        with watched(s3_server) as (_, passed):
            become(way, issuer, tmp_path / "token")
            store = S3Store(BUCKET, f"identity-{secrets.token_hex(6)}")
            (tmp_path / "token").write_text("a newer token")
            before = len(issuer.asked)
            passed.clear()
            store.create("a", b"1")
    finally:
        issuer.close()
    assert len(issuer.asked) > before
    assert signers(passed) == {(f"KEY{len(issuer.asked)}", f"SESSION{len(issuer.asked)}")}
    assert "a newer token" in issuer.asked[-1].values()


@pytest.mark.parametrize("way", ["IRSA", "Pod Identity"])
def test_keys_that_are_given_go_before_a_role(s3_server: S3Server, tmp_path: Path, way: str) -> None:
    issuer = Issuer()
    try:
        with watched(s3_server) as (_, passed):
            become(way, issuer, tmp_path / "token")
            os.environ |= {"AWS_ACCESS_KEY_ID": "given", "AWS_SECRET_ACCESS_KEY": "secret"}
            use(tmp_path)
    finally:
        issuer.close()
    assert (signers(passed), issuer.asked) == ({("given", "")}, [])


# -- what no request carries


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("wish", [None, "when_supported"])
def test_no_request_carries_a_checksum_that_other_stores_refuse(
    s3_server: S3Server, authority: tuple[Path, ssl.SSLContext], tmp_path: Path, secure: bool, wish: str | None
) -> None:
    """Over HTTPS they would come as a trailer. Not even where the environment wishes for them. MD5 protects what is written."""
    with watched(s3_server, authority[1] if secure else None) as (_, passed):
        os.environ["AWS_CA_BUNDLE"] = str(authority[0])
        if wish is not None:
            os.environ |= {"AWS_REQUEST_CHECKSUM_CALCULATION": wish, "AWS_RESPONSE_CHECKSUM_VALIDATION": wish}
        use(tmp_path)
    carried = {name.lower() for one in passed for name in one.headers}
    assert "authorization" in carried
    assert [name for name in carried if name.startswith(STRANGE)] == []
    assert not any("TRAILER" in header(one, "X-Amz-Content-SHA256") or "aws-chunked" in header(one, "Content-Encoding") for one in passed)
    assert {one.method for one in passed} == {"PUT", "GET", "DELETE"}
    assert all(header(one, "Content-MD5") and header(one, "If-None-Match") == "*" for one in passed if one.method == "PUT")
