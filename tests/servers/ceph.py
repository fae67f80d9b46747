"""Ceph's S3 gateway over one monitor and one storage daemon in memory: signatures, conditions and errors as stores in use have them.

Programs come from the folder that `fetch_debian.sh ceph` fills, else from the machine. All listen on 127.0.0.1 alone. What a cluster's
setting up takes (keys, a first map of its one daemon) is written before anything starts, so neither Ceph's Python nor root is needed: 6 s.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from tests.servers.child import S3Server, child, free_port, listens, until

UNPACKED = Path(__file__).parents[2] / ".venv" / "ceph"
PROGRAMS = ("monmaptool", "osdmaptool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")

# One copy of everything on one daemon; no authentication within the cluster; pools of one group; short rounds of the monitor, since
# the gateway makes its pools one after the other.
CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
rgw rados pool pg num min = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
paxos propose interval = 0.02
paxos min wait = 0.01
run dir = {folder}
log file = {folder}/$name.log
admin socket =
pid file =
{plugins}
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway}
"""
PLUGINS = """
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
osd class dir = {libraries}/rados-classes
"""


def program(name: str) -> str | None:
    unpacked = UNPACKED / "usr" / "bin" / name
    return str(unpacked) if unpacked.is_file() else shutil.which(name)


def is_there() -> bool:
    return all(program(name) for name in PROGRAMS)


@contextmanager
def ceph(folder: Path) -> Iterator[S3Server]:
    """A cluster with a gateway for the block, empty at first; logs lie in `folder`. Raises RuntimeError if it does not start."""
    if not is_there():
        raise RuntimeError("Ceph is not here: `make ceph` fetches it (needs Debian or Ubuntu, no root)")
    monitor, gateway, fsid = free_port(), free_port(), str(uuid4())
    libraries = UNPACKED / "usr" / "lib" / "x86_64-linux-gnu"
    paths = [libraries, libraries / "ceph", UNPACKED / "lib" / "x86_64-linux-gnu"]
    plugins = PLUGINS.format(libraries=libraries) if libraries.is_dir() else ""
    config = CONFIG.format(fsid=fsid, monitor=monitor, gateway=gateway, folder=folder, plugins=plugins)
    (folder / "ceph.conf").write_text(config)
    environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf"), "LD_LIBRARY_PATH": ":".join(map(str, paths))}

    def call(*command: str) -> None:
        done = subprocess.run([program(command[0]) or "", *command[1:]], env=environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")

    def daemon(*command: str) -> "subprocess.Popen[bytes]":
        return running.enter_context(child([program(command[0]) or "", *command[1:]], environment, folder / f"{command[0]}.out"))

    server = S3Server(f"http://127.0.0.1:{gateway}")
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    with ExitStack() as running:
        call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor}/0]", f"{folder}/monmap")
        call("osdmaptool", f"{folder}/osdmap", "--createsimple", "1")
        call("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap", "--osdmap", f"{folder}/osdmap")
        daemon("ceph-mon", "-i", "a", "-f")
        call("ceph-osd", "-i", "0", "--mkfs")
        daemon("ceph-osd", "-i", "0", "-f")
        keys = (f"--access-key={server.access_key}", f"--secret={server.secret_key}")
        call("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        process = daemon("radosgw", "-n", "client.rgw", "-f")
        until(lambda: listens(server.endpoint), process, folder / "radosgw.out")
        yield server
