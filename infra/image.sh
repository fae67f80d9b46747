#!/usr/bin/env bash
# The steps of infra/Dockerfile's build stages. Every package is checked against its hash; none is resolved or built in isolation, where
# what builds it would come unchecked. The image's environment gets no pip: the tools' one works on it.
#     image.sh tools LOCK | packages GROUP | project
set -euo pipefail
tools=/opt/build image=/opt/video2lora lock=lock.txt
group() { grep -E "# .*\b$1\b" "$lock"; }
pip=("$tools/bin/pip" --python "$image/bin/python" install --no-deps --no-build-isolation)
case $1 in
  tools)
    mv "$2" "$lock"
    python3.11 -m venv "$tools"
    python3.11 -m venv --without-pip "$image"
    group build > build.txt
    "$tools/bin/pip" install --no-deps --require-hashes -r build.txt
    grep '^setuptools==' "$lock" > setuptools.txt
    "${pip[@]}" --require-hashes -r setuptools.txt ;;
  packages)
    group "$2" > "$2.txt"
    "${pip[@]}" --require-hashes -r "$2.txt" ;;
  project)
    "${pip[@]}" .
    "$tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --of JSON -o "$image/sbom.cdx.json" "$image/bin/python" ;;
  *) echo "image.sh: got $1, expected tools, packages or project" >&2; exit 2 ;;
esac
