#!/usr/bin/env bash
# A program of Debian's for the tests, unpacked into a folder: no root, nothing of the machine's is changed.
#     tests/servers/fetch_debian.sh ceph|postgres|chromium|wordnet|prometheus|buildah|debian FOLDER
# What apt would install is downloaded, with lists and a cache of its own in the folder, and unpacked instead of installed. Of that only
# what runs here is taken. Where the machine has its own, the folder stays empty.
#     ceph      monitor, storage daemon, S3 gateway     6 s, 220 MB; not Ceph's Python, lvm2, sudo and the like, which manage disks
#     postgres  the server                             10 s,  90 MB; not LLVM, of 110 MB, which compiles queries
#     chromium  the browser and a font                35 s, 370 MB
#     wordnet   WordNet 3.0's database                 6 s,  30 MB
#     prometheus  promtool and the server               6 s,  90 MB
#     buildah   builds images, as root                  6 s,  20 MB
#     debian    what it builds them from: a root with   6 s,  90 MB
#               Python 3.11, nothing in it set up
set -euo pipefail
target=$1 root=$(realpath -m "$2")
own() { for path in "$@"; do [[ -e $path ]] || return 1; done; }  # the machine's
programs() { local name; for name in "$@"; do command -v "$name" > /dev/null || return 1; done; }
missing() { echo "${asked%% *}"; }
finish() { :; }
installed=/var/lib/dpkg/status
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
    missing() { programs chromium || echo chromium; programs fc-list || echo fontconfig; [[ -n $(fc-list 2> /dev/null) ]] || echo fonts-dejavu-core; }
    has_its_own() { [[ -z $(missing) ]]; } ;;
  wordnet)
    name=WordNet asked=wordnet-base taken='wordnet-base' left_out='^$' unused="usr/share/doc usr/share/man"
    has_its_own() { own /usr/share/wordnet/data.noun; } ;;
  prometheus)
    name=Prometheus asked=prometheus taken='prometheus' left_out='^$' unused="usr/share lib etc"
    has_its_own() { programs prometheus promtool; } ;;
  buildah)
    name=Buildah asked="buildah patchelf" taken='lib[^_]*|buildah|patchelf|golang-github-containers-[^_]*' left_out='^$'
    unused="usr/share/doc usr/share/man"
    has_its_own() { programs buildah; }
    finish() { usr/bin/patchelf --set-rpath "$root/usr/lib/x86_64-linux-gnu" usr/bin/buildah; } ;;  # its children have no LD_LIBRARY_PATH
  debian)
    name="Debian with Python" taken='[^_]*' left_out='^$' unused="usr/share/doc usr/share/man usr/share/locale"
    asked="python3.11-venv bash dash coreutils findutils grep sed tar gzip passwd base-files base-passwd libc-bin libstdc++6 libnuma1 ca-certificates"
    has_its_own() { false; }
    installed=/dev/null
    finish() { cp usr/share/base-passwd/passwd.master etc/passwd; cp usr/share/base-passwd/group.master etc/group; } ;;
  *) echo "fetch_debian.sh: got $target, expected ceph, postgres, chromium, wordnet, prometheus, buildah or debian" >&2; exit 2 ;;
esac
! has_its_own || { mkdir -p "$root"; exit 0; }
programs apt-get dpkg-deb || { echo "$name cannot be fetched: apt-get or dpkg-deb is not here, it comes from Debian's packages" >&2; exit 1; }
rm -rf "$root" "$root.part"
mkdir -p "$root.part/apt/lists/partial" "$root.part/apt/archives/partial" "$root.part/debs"
cd "$root.part"
apt=(apt-get -qq -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
apt+=(-o "Dir::State::status=$installed")
"${apt[@]}" update
"${apt[@]}" install --print-uris --no-install-recommends $asked > apt/uris
packages=$(sed -nE "/$left_out/d; s/^'[^']*' ($taken)_.*/\1/p" apt/uris)
[[ $packages == *${asked%% *}* ]] || { echo "$name cannot be fetched: apt would not install ${asked%% *}, and what is not here is" $(missing) >&2; exit 1; }
(cd debs && "${apt[@]}" download $packages)
for deb in debs/*.deb; do dpkg-deb --extract "$deb" .; done
rm -rf apt debs $unused
finish
cd / && mv "$root.part" "$root"
