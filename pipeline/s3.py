"""A store in an S3 bucket: `s3://bucket/prefix`, credentials and endpoint from the usual AWS environment.

`PutObject` with `If-None-Match: *` is the create-only primitive: the only conditional operation that all object stores we
target agree on. 412 means that somebody's bytes are there: they are read, and comparing bytes decides. What was not
answered may have landed, may land later or never: the same bytes are put there again, before anything else is done, for as
long as this process lives, until the store says what lies there. Nothing is ever overwritten or deleted (but doctor's own
probes), and no other conditional or copying operation is used.
"""

import base64
import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    InvalidConfigError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from urllib3.exceptions import HTTPError

from pipeline.errors import ConfigError, StoreUnavailable
from pipeline.store import KEYS_VARIABLE, MAX_OBJECT_BYTES, check_key, check_size, is_key

CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
TRIES = 4
"""Of one request in one call, with growing pauses; who called tries again later, ever less often."""
PAUSE_SECONDS = 0.2
"""Before the second try; four times as long before each one after it."""
PARALLEL = 16
"""Reads at once where many objects are wanted: also the number of connections kept open."""
PART_BYTES = 1024 * 1024
"""Of a file, read at once."""
PROBE = "create-only"
"""Object that a store is asked to overwrite before a search trusts it."""
_FILES = {"AWS_ACCESS_KEY_ID": "aws_access_key_id", "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key", "AWS_SESSION_TOKEN": "aws_session_token"}
_STALE = frozenset({"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired", "403"})
"""What a store says to keys that it does not take any more."""
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_MISSING = frozenset({"NoSuchKey", "404"})
_ADVICE = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the store's URL",
    "AccessDenied": "access is denied; the credentials need s3:GetObject, s3:PutObject and s3:ListBucket there",
    "InvalidAccessKeyId": "the access key is unknown there; are these the credentials of this endpoint (AWS_ENDPOINT_URL)?",
    "SignatureDoesNotMatch": "the secret key does not fit the access key, or a proxy changes requests on their way",
    "ExpiredToken": "the credentials have run out; renew them",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it (NTP)",
    "PermanentRedirect": "the bucket lies in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket lies in another region; set AWS_REGION",
    "QuotaExceeded": "the quota of the bucket or its owner is used up; raise it",
    "NotImplemented": "this object store does not know create-only writes (If-None-Match); choose another one",
}
"""What a person can do about a refusal, by S3's error code."""
_UNKNOWN_CODES = frozenset({"RequestTimeout", "SlowDown", "ConditionalRequestConflict", "OperationAborted", "InternalError", "ServiceUnavailable"})
Got = TypeVar("Got")
log = logging.getLogger("hiernas.s3")


class _Unsettled(Exception):
    """No answer, or one that says nothing of what lies in the store."""


class _Refusal(StoreUnavailable):
    """A definite no: the request has changed nothing."""


class S3Store:
    """See Store. Safe for several threads."""

    parallel = PARALLEL

    def __init__(self, bucket: str, prefix: str = "", make: bool = True) -> None:
        if not BUCKET.fullmatch(bucket):
            raise ConfigError(f"store s3://{bucket}/{prefix}: {bucket!r} is no bucket's name; expected s3://bucket/prefix")
        self.bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._unsettled: dict[str, bytes] = {}
        """Writes that were not answered: each is repeated, with the same bytes, before this store does anything else."""
        self._lock, self._renewing = threading.Lock(), threading.Lock()
        self._keys = _mounted_keys()
        self._client = _client(self.url, self._keys)
        if make:
            self._check_create_only()

    def _check_create_only(self) -> None:
        """Refuse a store that overwrites: a search would lose results there without anybody noticing."""
        self.create(PROBE, b"hiernas writes nothing twice\n")
        if self._wins(PROBE, lambda: self._put(PROBE, b"overwritten\n")):
            raise ConfigError(
                f"store {self.url} overwrites objects although asked not to (If-None-Match: *): choose an object store with create-only writes; "
                "Ceph's has them only in a bucket without versioning"
            )

    # -- the primitive

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        check_size(check_key(key), len(data))
        self._settle()
        return self._write(key, data)

    def _settle(self) -> None:
        """Nothing is told of the store, and nothing else is decided, before it is known what came of each write that was not answered."""
        if self._unsettled:
            with self._lock:
                for key, data in list(self._unsettled.items()):
                    self._write(key, data)

    def _write(self, key: str, data: bytes) -> bytes:
        sent = 0

        def put() -> None:
            nonlocal sent
            sent += 1
            try:
                self._put(key, data)
            except ClientError as error:
                sent -= _is_definite(error)
                raise

        try:
            stored = self._answer_to(put, key, data)
        except _Refusal:
            if sent:  # a try that was not answered may have landed, or may land
                self._unsettled[key] = data
            raise
        except BaseException:
            self._unsettled[key] = data
            raise
        self._unsettled.pop(key, None)
        return stored

    def _answer_to(self, put: Callable[[], None], key: str, data: bytes) -> bytes:
        if self._wins(key, put):
            return data
        try:
            return self._read(key)  # our own, where an earlier answer was lost: comparing bytes decides
        except KeyError:
            raise StoreUnavailable(f"store {self.url}: {key} is taken and absent at once; if somebody deletes objects of an open run, stop it") from None

    def read(self, key: str) -> bytes:
        """See Store."""
        self._settle()
        return self._read(check_key(key))

    def _read(self, key: str) -> bytes:
        return self._fetched(key, lambda: self._get(key))

    def folders(self) -> list[str]:
        """See Folders. A thousand of them are one request, whatever is in them."""
        pages = self._pages("", {"Delimiter": "/"})
        names = [str(one["Prefix"]).removeprefix(self._prefix).rstrip("/") for page in pages for one in page.get("CommonPrefixes", [])]
        return sorted(name for name in names if is_key(name))

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        start = {"StartAfter": self._prefix + after} if after is not None else {}
        names = [str(entry["Key"]).removeprefix(self._prefix) for page in self._pages(prefix, start) for entry in page.get("Contents", [])]
        return sorted(name for name in names if is_key(name) and (after is None or name > after) and name != PROBE)

    def _pages(self, prefix: str, how: dict[str, str]) -> Iterator[dict[str, Any]]:
        self._settle()
        more: dict[str, str] = {}
        while True:
            page = self._page(prefix, how | more)
            yield page
            if not page.get("IsTruncated"):
                return
            if more.get("ContinuationToken") == page.get("NextContinuationToken"):
                raise StoreUnavailable(f"store {self.url}: its list of {prefix!r} does not go on (no new continuation token)")
            more = {"ContinuationToken": page["NextContinuationToken"]}

    # -- files, which are no records: named by their content, so the first write is as good as any other

    def put_file(self, key: str, path: Path) -> None:
        """Store the file's bytes unless the key is taken; at most 5 GiB."""
        check_key(key)
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, _md5).digest()

            def put() -> None:
                file.seek(0)
                self._put(key, file, md5)

            self._wins(key, put)

    def get_file(self, key: str, path: Path) -> None:
        """Write what is stored there into a file; KeyError when absent."""
        check_key(key)

        def get() -> None:
            found = self._client.get_object(Bucket=self.bucket, Key=self._prefix + key)
            with closing(found["Body"]) as body, path.open("wb") as file:
                for part in body.iter_chunks(PART_BYTES):
                    file.write(part)
            if path.stat().st_size != found.get("ContentLength"):
                raise _Unsettled(f"{path.stat().st_size} bytes came of {found.get('ContentLength')}")

        self._fetched(key, get)

    # -- what `hiernas doctor` asks of the bucket

    def server_date(self) -> str:
        """Date header of an answer; empty if it has none."""
        return str(self._page("", {}).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        """The bucket's lifecycle rules, as S3 tells them. StoreUnavailable where they may not be read, or the server knows none."""
        try:
            found = self._ask("lifecycle", "", lambda: self._client.get_bucket_lifecycle_configuration(Bucket=self.bucket))
        except ClientError as error:
            if _code(error) == "NoSuchLifecycleConfiguration":
                return []
            raise StoreUnavailable(f"{_code(error)}, HTTP {_status(error)}") from error
        rules: Sequence[dict[str, Any]] = found.get("Rules", [])
        return rules

    def discard(self, key: str) -> bool:
        """Delete an object of doctor's own; whether that was allowed. No record can have such a key."""
        if not key.startswith("_doctor/"):
            raise ValueError(f"key {key!r} is not doctor's: nothing else is ever deleted")
        try:
            self._ask("delete", key, lambda: self._client.delete_object(Bucket=self.bucket, Key=self._prefix + key))
        except (ClientError, StoreUnavailable):
            return False
        return True

    def full_key(self, key: str) -> str:
        """A key with the store's prefix before it: what the bucket and its rules call it."""
        return self._prefix + key

    # -- requests

    def _wins(self, key: str, put: Callable[[], None]) -> bool:
        """Whether this write took the key; False where somebody's bytes are there."""
        try:
            self._ask("put", key, put)
        except ClientError as error:
            if _status(error) == 412:
                return False
            raise self._refused(key, error) from error
        return True

    def _fetched(self, key: str, get: Callable[[], Got]) -> Got:
        """What is stored there; KeyError when absent."""
        try:
            return self._ask("get", key, get)
        except ClientError as error:
            if _status(error) == 404 and _code(error) in _MISSING:
                raise KeyError(key) from None
            raise self._refused(key, error) from error

    def _put(self, key: str, data: Any, md5: bytes | None = None) -> None:
        """`data`: bytes, or a file with the MD5 of its bytes."""
        digest = base64.b64encode(md5 or _md5(data).digest()).decode()
        self._client.put_object(Bucket=self.bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*", ContentMD5=digest)

    def _get(self, key: str) -> bytes:
        found = self._client.get_object(Bucket=self.bucket, Key=self._prefix + key)
        with closing(found["Body"]) as body:
            length = found.get("ContentLength")
            check_size(key, length or 0)
            data: bytes = body.read(MAX_OBJECT_BYTES + 1)
        if len(data) != length:
            raise _Unsettled(f"{len(data)} bytes came of {length}")
        return data

    def _page(self, prefix: str, more: dict[str, str]) -> dict[str, Any]:
        try:
            return self._ask("list", prefix, lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix + prefix, **more))
        except ClientError as error:
            raise self._refused(prefix, error) from error

    def _ask(self, operation: str, key: str, request: Callable[[], Got]) -> Got:
        """The answer. ClientError is a definite one (400, 403, 404, 412, …); what says nothing is asked again, then StoreUnavailable."""
        for left in reversed(range(TRIES)):
            keys = self._keys
            try:
                try:
                    return request()
                except ClientError as error:
                    if _code(error) not in _STALE or not self._renewed(keys):
                        raise
                    return request()
            except ClientError as error:
                if _is_definite(error):
                    raise
                why: Exception = error
            except (_Unsettled, BotoCoreError, HTTPError, OSError) as error:
                why = error
                if isinstance(error, _NO_USE):
                    left = 0
            log.info("no answer operation=%s key=%s left=%d error=%s", operation, key, left, why)
            if not left:
                break
            time.sleep(PAUSE_SECONDS * 4 ** (TRIES - 1 - left) * random.uniform(0.5, 1.0))  # noqa: S311  # spreads out retries, nothing else
        raise StoreUnavailable(f"store {self.url}: {_explain(why)}. Nothing is lost or half-written")

    def _renewed(self, refused: dict[str, str]) -> bool:
        """Whether other keys than those that were refused are in the mounted folder by now; then requests use them."""
        with self._renewing:
            found = _mounted_keys()
            if found and found != self._keys:
                self._client = _client(self.url, found)  # before the keys: who sees those asks again with this
                self._keys = found
                log.info("the store's keys were renewed store=%s", self.url)
            return self._keys != refused

    def _refused(self, key: str, error: ClientError) -> _Refusal:
        """A definite no: told at once, and not asked again here. It may pass (a right that is given, a token renewed), so who can wait, waits."""
        code = _code(error)
        advice = _ADVICE.get(code, error.response.get("Error", {}).get("Message") or "refused")
        return _Refusal(f"store {self.url}: {key or 'its list'}: {advice} ({code}, HTTP {_status(error)})")


_NO_USE = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, SSLError)
"""What asking again at once does not change."""


def _mounted_keys() -> dict[str, str]:
    """Keys from the mounted folder, as boto3 names them; empty where there is none, or not both halves of a key."""
    folder = os.environ.get(KEYS_VARIABLE)
    found: dict[str, str] = {}
    for file, name in _FILES.items() if folder else ():
        try:
            found[name] = Path(folder or "", file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return found if {"aws_access_key_id", "aws_secret_access_key"} <= found.keys() else {}


def _client(url: str, keys: dict[str, str]) -> Any:
    try:
        session = botocore.session.Session()
        # Times in answers stay text, as for the aws command: reading one for each key took three quarters of a list's time.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        return boto3.session.Session(botocore_session=session, **keys).client(
            "s3",
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                max_pool_connections=PARALLEL,
                tcp_keepalive=True,
                retries={"total_max_attempts": 1},  # what is asked again, and how often, is decided in one place: here
                # Content-MD5 protects what is sent, whatever the server; newer checksums are refused by many of them.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                user_agent_extra="hiernas",
            ),
        )
    except (ProfileNotFound, InvalidConfigError, BotoCoreError, ValueError) as error:
        raise ConfigError(f"store {url}: {error}; the AWS environment decides (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, ~/.aws/config)") from error


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _is_definite(error: ClientError) -> bool:
    """Whether the answer says that the request has changed nothing (or, 412, what is there)."""
    return _status(error) < 500 and _status(error) != 429 and _code(error) not in _UNKNOWN_CODES


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _explain(error: Exception) -> str:
    match error:
        case NoCredentialsError():
            return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role (IRSA, Pod Identity)"
        case SSLError():
            bundle = os.environ.get("AWS_CA_BUNDLE")
            if bundle and not Path(bundle).is_file():
                return f"AWS_CA_BUNDLE names {bundle}, which is no file here"
            return f"its certificate is not trusted ({error}); give the CA's file in AWS_CA_BUNDLE"
        case EndpointConnectionError():
            return f"{error}; is the address right (AWS_ENDPOINT_URL) and the server up?"
        case ClientError():
            return f"it does not serve requests now ({_code(error)}, HTTP {_status(error)})"
    return f"it does not answer ({error})"
