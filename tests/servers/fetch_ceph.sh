#!/usr/bin/env bash
# Debian's Ceph (monitor, storage daemon, S3 gateway) unpacked into a folder: no root, nothing of the machine's is changed. 6 s, 220 MB.
#     tests/servers/fetch_ceph.sh FOLDER
# What apt would install is downloaded, with lists and a cache of its own in the folder, and unpacked instead of installed. Of that
# only daemons and libraries are taken: Ceph's Python, lvm2, sudo and the like are for managing disks.
set -euo pipefail
root=$(realpath -m "$1")
missing=
for program in monmaptool osdmaptool ceph-mon ceph-osd radosgw radosgw-admin; do command -v "$program" > /dev/null || missing=$program; done
[[ -n $missing ]] || { mkdir -p "$root"; exit 0; }  # the machine has its own
for program in apt-get dpkg-deb; do
  command -v "$program" > /dev/null || { echo "Ceph cannot be fetched: no $program here, it comes from Debian's packages" >&2; exit 1; }
done
rm -rf "$root" "$root.part"
mkdir -p "$root.part/apt/lists/partial" "$root.part/apt/archives/partial" "$root.part/debs"
cd "$root.part"
apt=(apt-get -qq -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
"${apt[@]}" update
"${apt[@]}" install --print-uris --no-install-recommends radosgw ceph-mon ceph-osd > apt/uris
packages=$(sed -nE "s/^'[^']*' (lib[^_]*|radosgw|ceph-[^_]*)_.*/\1/p" apt/uris)
[[ $packages == *radosgw* ]] || { echo "Ceph cannot be fetched: apt would not install radosgw, though $missing is not here" >&2; exit 1; }
(cd debs && "${apt[@]}" download $packages)
for deb in debs/*.deb; do dpkg-deb --extract "$deb" .; done
rm -rf apt debs usr/share lib/systemd
cd / && mv "$root.part" "$root"
