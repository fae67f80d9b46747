"""A real Ray cluster for tests: a head and workers on loopback, each by `ray start`, with the job server and token authentication on.

Its session lies in a folder of its own: a job looks there for the cluster it is on, and might find another of this host elsewhere.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.command import below, kill, named
from tests.servers.child import free_port

STARTED = "Ray runtime started."
START_S = 400.0
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # as Ray's provider for tests calls it


@dataclass
class RayCluster:
    """One that can be killed, and started again at the same address."""

    folder: Path  # for what its processes say
    n_cpus: tuple[int, ...]  # of the head, and of each worker
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    n_grown: int = 0  # nodes of one CPU that its autoscaler may add
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    session: str = ""
    gcs: str = ""  # where drivers connect to

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What who submits to it needs."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address}

    def start(self) -> None:
        """Raises RuntimeError with a node's last words where it does not come up, three times."""
        for n_left in (2, 1, 0):
            try:
                return self._start()
            except RuntimeError:  # on a busy host: a raylet gives its agents 15 s, and dies then
                self.kill()
                if not n_left:
                    raise

    def _start(self) -> None:
        self.session = tempfile.mkdtemp(prefix="v2l-", dir="/tmp")  # a socket's path is at most 107 characters
        gcs_port = free_port()
        self.gcs = f"127.0.0.1:{gcs_port}"
        head = ["--head", f"--port={gcs_port}", f"--ray-client-server-port={free_port()}"]
        head += [f"--autoscaling-config={self._autoscaling(gcs_port)}"] if self.n_grown else ["--no-monitor"]
        dashboard = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.port}"]
        self._start_node(self.n_cpus[0], *head, *dashboard)
        for n in self.n_cpus[1:]:
            self._start_node(n, f"--address=127.0.0.1:{gcs_port}")

    def kill(self) -> None:
        """SIGKILL to all of it, also to agents whose raylet died: nobody says goodbye."""
        for node in self.nodes:
            kill(below(node.pid), node.pid)
            node.wait()
        self.nodes = []
        kill([one for one in psutil.process_iter(["cmdline"]) if self.session and self.session in " ".join(one.info["cmdline"] or [])])
        shutil.rmtree(self.session, ignore_errors=True)

    def _start_node(self, n_cpus: int, *options: str) -> None:
        said = self.folder / f"ray-{time.monotonic_ns()}.txt"
        command = ["ray", "start", "--block", f"--num-cpus={n_cpus}", "--object-store-memory=150000000"]
        # Each its own, as on hosts of their own: a node unpacks a job's files anew, and would take their folder away from one that runs.
        command.append(f"--temp-dir={self.session}/{len(self.nodes)}")
        ports = [
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--include-log-monitor=false",
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        with said.open("wb") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            node = subprocess.Popen(
                [*command, *ports, *options],
                env=self._environment(),
                start_new_session=True,
                **streams,
            )
        self.nodes.append(node)
        deadline_s, was_there = time.monotonic() + START_S, False
        while STARTED not in said.read_text(errors="replace"):
            is_there = bool(named("raylet/raylet", pid=node.pid))
            if node.poll() is not None or time.monotonic() > deadline_s or (was_there and not is_there):
                raise RuntimeError(f"no Ray node:\n{said.read_text(errors='replace')[-3000:]}")
            was_there = is_there
            time.sleep(0.2)

    def n_raylets(self) -> int:
        """Of the head's own processes and those that its autoscaler started; what one forks, to become a worker, is none."""
        found = [one for node in self.nodes for one in named("raylet/raylet", pid=node.pid)]
        n, pids = 0, {one.pid for one in found}
        for one in found:
            with suppress(psutil.NoSuchProcess):
                n += one.ppid() not in pids
        return n

    def _autoscaling(self, gcs_port: int) -> Path:
        """Of Ray's autoscaler, whose nodes are processes here: the provider that Ray has for tests."""
        provider = {"type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"}
        provider |= {"launch_multiple": True, "head_node_id": HEAD, "gcs_address": f"127.0.0.1:{gcs_port}"}
        head = {"resources": {"CPU": self.n_cpus[0]}, "node_config": {}, "max_workers": 0}
        grown = {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": self.n_grown,
        }
        file = self.folder / "autoscaling.json"
        settings = {"cluster_name": "grows", "max_workers": self.n_grown, "idle_timeout_minutes": 10, "provider": provider, "auth": {}}
        types = {"ray.head.default": head, "grown": grown}
        lists = ("setup_commands", "initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")
        lists += ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
        settings |= {"file_mounts": {}, "file_mounts_sync_continuously": False, "docker": {}, **{name: [] for name in lists}}
        file.write_text(json.dumps(settings | {"available_node_types": types, "head_node_type": "ray.head.default"}))
        return file

    def _environment(self) -> dict[str, str]:
        grows = {"RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        grows |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
        here = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VIDEO2LORA_"))}
        return {
            **here,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "240",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
            "RAY_NUM_REDIS_GET_RETRIES": "240",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            **(grows if self.n_grown else {}),
            **self.environment,
        }


@contextmanager
def ray_cluster(folder: Path, *n_cpus: int, n_grown: int = 0, **environment: str) -> Iterator[RayCluster]:
    """The cluster, for the block."""
    cluster = RayCluster(folder, n_cpus, environment, n_grown=n_grown)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()
