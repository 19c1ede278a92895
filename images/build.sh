#!/usr/bin/env bash
# Build the images; `push` them, or bring them into a local cluster's containerd by `layout` and `load`. docs/images.md says what can be set.
# shellcheck disable=SC2012 # the files that are listed here are named by digests
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "images/build.sh: $*" >&2
  exit 2
}

engine() {
  if docker info >/dev/null 2>&1; then echo docker # a docker without its daemon is no help
  elif command -v podman >/dev/null; then echo podman
  elif command -v buildah >/dev/null; then echo buildah
  else fail 'here is no running docker, no podman and no buildah: install one, or name one in ENGINE'
  fi
}

# The settings by which this machine reaches its package index, as a shell file. They go into the build as secrets and not as
# arguments: an argument stays in the image's history, and the address of an index may hold a password.
environment() {
  local variable
  for variable in UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL PIP_INDEX_URL PIP_EXTRA_INDEX_URL; do
    if [[ ${!variable:-} ]]; then printf 'export %s=%q\n' "$variable" "${!variable}"; fi
  done
  if [[ ${SSL_CERT_FILE:-} ]]; then echo 'export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca'; fi
}

build() {
  local settings target
  settings=$(mktemp)
  # shellcheck disable=SC2064 # its value now: it is local
  trap "rm -f '$settings'" EXIT
  environment >"$settings"
  local arguments=(--secret "id=environment,src=$settings" --build-arg "VERSION=$version" --build-arg "REVISION=$revision")
  if [[ ${SSL_CERT_FILE:-} ]]; then arguments+=(--secret "id=ca,src=$SSL_CERT_FILE"); fi
  if [[ ${BASE_IMAGE:-} ]]; then arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
  if [[ ${WORKER_REQUIREMENTS:-} ]]; then arguments+=(--build-arg "WORKER_REQUIREMENTS=$WORKER_REQUIREMENTS"); fi
  if [[ $ENGINE == buildah ]]; then arguments+=(--layers); fi # the others keep layers unasked
  for target in "${targets[@]}"; do
    # shellcheck disable=SC2086 # several words on purpose
    "$ENGINE" build "${arguments[@]}" ${EXTRA_BUILD_ARGS:-} --target "$target" --tag "$name-$target:$TAG" --file Dockerfile .
  done
}

push() {
  local target
  for target in "${targets[@]}"; do "$ENGINE" push "$name-$target:$TAG"; done
}

# The images as a folder of blobs, each named by its digest. Uncompressed, so that a layer which lies there already is recognised
# and not read again: after a change of code that is all but one.
layout() {
  local folder=$1 target
  [[ $ENGINE != docker ]] || fail "mode layout reads the images of podman and buildah; a cluster made by kind takes docker's by 'kind load docker-image'"
  mkdir -p "$folder"
  exec 9>"$folder/lock"
  flock 9
  rm -f "$folder/index.json" # would keep the images of earlier builds
  for target in "${targets[@]}"; do
    skopeo copy --quiet --dest-oci-accept-uncompressed-layers \
      "containers-storage:$name-$target:$TAG" "oci:$folder:$name-$target:$TAG"
  done
  # What no image of this build needs goes.
  cd "$folder/blobs/sha256"
  local manifests
  manifests=$(digests ../../index.json)
  # shellcheck disable=SC2086 # a word for each manifest
  comm -23 <(ls | sort) <({ echo "$manifests"; digests $manifests; } | sort -u) | xargs --no-run-if-empty rm --
}

digests() { grep --only-matching --no-filename 'sha256:[0-9a-f]\{64\}' "$@" | cut -d: -f2; }

# Only the blobs that containerd lacks are sent; it unpacks only the layers that it has not unpacked before.
load() {
  local folder=$1 target lacking
  read -ra ctr <<<"${CTR:-ctr --namespace k8s.io}"
  exec 9<"$folder/lock"
  flock --shared 9
  # ctr moves the name to the new image first and unpacks it then: without another name for the old image, containerd may throw
  # away the layers that both share in between, and the unpacking fails.
  for target in "${targets[@]}"; do
    if [[ $("${ctr[@]}" images ls --quiet "name==$name-$target:$TAG") ]]; then
      "${ctr[@]}" images tag --force "$name-$target:$TAG" "$name-$target:previous" >/dev/null
    fi
  done
  lacking=$(comm -23 <(ls "$folder/blobs/sha256" | sort) <("${ctr[@]}" content ls --quiet | sed 's/^sha256://' | sort))
  # shellcheck disable=SC2086 # a word for each blob
  tar --create --directory "$folder" oci-layout index.json ${lacking:+$(printf 'blobs/sha256/%s ' $lacking)} | "${ctr[@]}" images import -
}

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)
TAG=${TAG:-$version-$revision}
ENGINE=${ENGINE:-$(engine)}
name=${REGISTRY:-localhost}/hiernas
# `store`, a server for trying it out, has to be asked for: it has no place in a registry for searches that matter.
read -ra targets <<<"${IMAGES:-controller worker}"
for target in "${targets[@]}"; do
  [[ $target == controller || $target == worker || $target == store ]] || fail "unknown image '$target' in IMAGES; known: controller, worker, store"
done
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hiernas-images

case "${1:-build}" in
  build) build ;;
  push) push ;;
  layout) layout "${2:-$cache}" ;;
  load) load "${2:-$cache}" ;;
  *) fail "unknown mode '$1'; known: build, push, layout [FOLDER], load [FOLDER]" ;;
esac
