#!/usr/bin/env bash
# Debian's PostgreSQL server unpacked into a folder: no root, nothing of the machine's is changed. 10 s, 90 MB.
#     tests/servers/fetch_postgres.sh FOLDER
# As fetch_ceph.sh: what apt would install is downloaded and unpacked instead. Of that only the server and libraries are taken.
set -euo pipefail
root=$(realpath -m "$1")
for program in /usr/lib/postgresql/*/bin/initdb; do [[ ! -x $program ]] || { mkdir -p "$root"; exit 0; }; done  # the machine has its own
for program in apt-get dpkg-deb; do
  command -v "$program" > /dev/null || { echo "PostgreSQL cannot be fetched: no $program here, it comes from Debian's packages" >&2; exit 1; }
done
rm -rf "$root" "$root.part"
mkdir -p "$root.part/apt/lists/partial" "$root.part/apt/archives/partial" "$root.part/debs"
cd "$root.part"
apt=(apt-get -qq -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
"${apt[@]}" update
"${apt[@]}" install --print-uris --no-install-recommends postgresql > apt/uris
packages=$(sed -nE "/libllvm/d; s/^'[^']*' (lib[^_]*|postgresql-[0-9]+)_.*/\1/p" apt/uris)  # LLVM, of 110 MB, compiles queries: not ours
[[ $packages == *postgresql-* ]] || { echo "PostgreSQL cannot be fetched: apt would not install it, though it is not here" >&2; exit 1; }
(cd debs && "${apt[@]}" download $packages)
for deb in debs/*.deb; do dpkg-deb --extract "$deb" .; done
rm -rf apt debs usr/share/doc usr/share/locale
cd / && mv "$root.part" "$root"
