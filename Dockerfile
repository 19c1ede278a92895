# Three images from one file: `--target controller` without torch, `--target worker` with it, and for trying it out `--target store`,
# an S3 server. docs/images.md says how to build them.
# Dependencies are one layer and the code is the last one: a change of code moves less than a megabyte, not torch.

# Any Debian with Python 3.11 or newer will do, for example one of your company's.
ARG BASE_IMAGE=docker.io/library/python:3.13-slim-trixie

FROM ${BASE_IMAGE} AS uv
# Python's own images have pip; Debian's python3 comes without it. Not pinned: Debian's mirrors keep no old versions.
# hadolint ignore=DL3008
RUN python3 -m pip --version || { apt-get update && apt-get install --yes --no-install-recommends python3-pip; }
COPY images/requirements-uv.txt /
RUN --mount=type=secret,id=environment --mount=type=secret,id=ca \
    if [ -e /run/secrets/environment ]; then . /run/secrets/environment; fi; \
    python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --require-hashes --target /uv --requirement /requirements-uv.txt
# Last on purpose: buildah 1.28 (Debian 12) cannot mount from a stage whose last step is a RUN that it found in its cache.
COPY images/install.sh /uv/install.sh

FROM ${BASE_IMAGE} AS base
# HOME and USER: any numeric user may run this, though /etc/passwd lacks it; torch asks for a name, caches go below HOME.
# PYTHONDONTWRITEBYTECODE: the root file system is read-only; all bytecode is made here.
ENV PATH=/opt/hiernas/bin:${PATH} HOME=/tmp USER=hiernas PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Relative paths of a config are then volumes: data/ is /data, runs/ is /runs.
WORKDIR /
ENTRYPOINT ["hiernas"]

FROM ${BASE_IMAGE} AS code
COPY pyproject.toml /
COPY pipeline /opt/hiernas/app/pipeline
COPY search /opt/hiernas/app/search
COPY images/hiernas /opt/hiernas/bin/hiernas
# The program asks importlib.metadata for its version; a build by setuptools would fetch it unpinned, for these three lines.
# unchecked-hash: bytecode that is valid whatever becomes of the files' times on the way through an archive.
RUN version="$(sed -n 's/^version = "\(.*\)"$/\1/p' /pyproject.toml)" && about="/opt/hiernas/app/hiernas-$version.dist-info" && \
    mkdir "$about" && printf 'Metadata-Version: 2.1\nName: hiernas\nVersion: %s\n' "$version" > "$about/METADATA" && \
    python3 -m compileall -q --invalidation-mode unchecked-hash /opt/hiernas/app

# Installed in the final image's own stage: copied from a stage, torch's 5 GB would be written twice. uv is only mounted.
FROM base AS controller-dependencies
COPY images/requirements-controller.txt /opt/hiernas/requirements.txt
RUN --mount=type=bind,from=uv,source=/uv,target=/tmp/uv --mount=type=secret,id=environment --mount=type=secret,id=ca /tmp/uv/install.sh

FROM base AS worker-dependencies
# Another build of torch (CPU only, another CUDA): a file of your own, pinned against that index; see docs/images.md.
ARG WORKER_REQUIREMENTS=images/requirements-worker.txt
COPY ${WORKER_REQUIREMENTS} /opt/hiernas/requirements.txt
RUN --mount=type=bind,from=uv,source=/uv,target=/tmp/uv --mount=type=secret,id=environment --mount=type=secret,id=ca /tmp/uv/install.sh

FROM base AS store-dependencies
COPY images/requirements-store.txt /opt/hiernas/requirements.txt
RUN --mount=type=bind,from=uv,source=/uv,target=/tmp/uv --mount=type=secret,id=environment --mount=type=secret,id=ca /tmp/uv/install.sh

FROM controller-dependencies AS controller
COPY --from=code /opt/hiernas /opt/hiernas
USER 65532:65532
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hiernas-controller" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM worker-dependencies AS worker
COPY --from=code /opt/hiernas /opt/hiernas
USER 65532:65532
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hiernas-worker" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The server of k8s/local: none of our code, ministack from PyPI, of whose services only S3 is on. Its objects lie in /bucket.
FROM store-dependencies AS store
# Where the server looks for what it runs once it answers.
COPY images/bucket.py /docker-entrypoint-initaws.d/ready.d/bucket.py
ENV SERVICES=s3 BUCKET=searches S3_PERSIST=1 S3_DATA_DIR=/bucket SFTP_ENABLED=0 IOT_MTLS_ENABLED=0 LOG_LEVEL=WARNING
ENTRYPOINT ["ministack"]
EXPOSE 4566
USER 65532:65532
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="hiernas-store" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
