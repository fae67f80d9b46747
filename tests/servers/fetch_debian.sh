#!/usr/bin/env bash
# A program of Debian's for the tests, unpacked into a folder: no root, nothing of the machine's is changed.
#     tests/servers/fetch_debian.sh ceph|postgres|chromium|wordnet FOLDER
# What apt would install is downloaded, with lists and a cache of its own in the folder, and unpacked instead of installed. Of that only
# what runs here is taken. Where the machine has its own, the folder stays empty.
#     ceph      monitor, storage daemon, S3 gateway     6 s, 220 MB; not Ceph's Python, lvm2, sudo and the like, which manage disks
#     postgres  the server                             10 s,  90 MB; not LLVM, of 110 MB, which compiles queries
#     chromium  the browser and a font                35 s, 370 MB
#     wordnet   WordNet 3.0's database                 6 s,  30 MB
set -euo pipefail
target=$1 root=$(realpath -m "$2")
own() { for path in "$@"; do [[ -e $path ]] || return 1; done; }  # the machine's
programs() { for name in "$@"; do command -v "$name" > /dev/null || return 1; done; }
case $target in
  ceph)
    name=Ceph asked="radosgw ceph-mon ceph-osd" taken='lib[^_]*|radosgw|ceph-[^_]*' left_out='^$' unused="usr/share lib/systemd"
    has_its_own() { programs monmaptool osdmaptool ceph-mon ceph-osd radosgw radosgw-admin; } ;;
  postgres)
    name=PostgreSQL asked=postgresql taken='lib[^_]*|postgresql-[0-9]+' left_out='libllvm' unused="usr/share/doc usr/share/locale"
    has_its_own() { own /usr/lib/postgresql/*/bin/initdb; } ;;
  chromium)
    name=Chromium asked="chromium fonts-dejavu-core" taken='lib[^_]*|chromium|chromium-common|fontconfig-config|fonts-[^_]*' left_out='^$'
    unused="usr/share/doc usr/share/locale usr/share/icons"
    has_its_own() { programs chromium fc-list && [[ -n $(fc-list) ]]; } ;;
  wordnet)
    name=WordNet asked=wordnet-base taken='wordnet-base' left_out='^$' unused="usr/share/doc usr/share/man"
    has_its_own() { own /usr/share/wordnet/data.noun; } ;;
  *) echo "fetch_debian.sh: got $target, expected ceph, postgres, chromium or wordnet" >&2; exit 2 ;;
esac
! has_its_own || { mkdir -p "$root"; exit 0; }
programs apt-get dpkg-deb || { echo "$name cannot be fetched: apt-get or dpkg-deb is not here, it comes from Debian's packages" >&2; exit 1; }
rm -rf "$root" "$root.part"
mkdir -p "$root.part/apt/lists/partial" "$root.part/apt/archives/partial" "$root.part/debs"
cd "$root.part"
apt=(apt-get -qq -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
"${apt[@]}" update
"${apt[@]}" install --print-uris --no-install-recommends $asked > apt/uris
packages=$(sed -nE "/$left_out/d; s/^'[^']*' ($taken)_.*/\1/p" apt/uris)
[[ $packages == *${asked%% *}* ]] || { echo "$name cannot be fetched: apt would not install ${asked%% *}, though it is not here" >&2; exit 1; }
(cd debs && "${apt[@]}" download $packages)
for deb in debs/*.deb; do dpkg-deb --extract "$deb" .; done
rm -rf apt debs $unused
cd / && mv "$root.part" "$root"
