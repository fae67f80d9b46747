"""What Prometheus gets to see is what the tables count; the board and the alerts ask for nothing that is not there."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter as Counted
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from infra import metrics
from infra.config import Recipe, Where
from tests.servers.prometheus import Prometheus, running

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "base" / "monitoring"
OURS = {one.exported: one for one in vars(metrics).values() if isinstance(one, metrics.Metric)}
OTHERS = {
    "up",  # Prometheus's own
    "ray_node_cpu_utilization",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_gpus_utilization",
    "ray_node_disk_utilization_percentage",
}
GAUGE_LIVES_S = 21.0  # on a Ray node that hears no more of it: twice Ray's report interval
WORDS = {"by", "without", "on", "ignoring", "group_left", "and", "or", "unless"}


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "grafana.json").read_text())
    return found


def board_expressions() -> Iterator[tuple[str, str]]:
    """The title of a panel and what it asks, of all clusters."""
    for panel in board()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$cluster", ".*")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def names_in(expression: str) -> set[str]:
    """The metrics of an expression: what is neither a word of PromQL, a function, a label nor text."""
    plain = re.sub(r'"[^"]*"', "", expression)
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", plain)
    plain = re.sub(r"\b(by|without|on|ignoring|group_left)\s*\([^)]*\)", "", plain)
    return {name for name in re.findall(r"[A-Za-z_:][\w:]*(?![\w:]*\s*\()", plain) if name not in WORDS}


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_names_are_as_prometheus_has_them() -> None:
    assert names_in('sum by (stage) (rate(ray_a_total{b="c d"}[5m])) / on () group_left () ray_e > 2 and up == 1') == {
        "ray_a_total",
        "ray_e",
        "up",
    }
    for name, metric in OURS.items():
        assert re.fullmatch(r"ray_video2lora_[a-z0-9_]+", name)
        assert name.endswith("_total") == isinstance(metric, metrics.Counter)
        assert not {"node_type", "pod", "run", "port", "job", "instance"} & set(metric.labels), "Prometheus puts its own there"


def test_nothing_happens_where_ray_is_not() -> None:
    told = "metrics.committed('frames', n_rows=1, reasons=['black'], n_left=0, seconds=1.0); metrics.TRACKING_AWAY.set(1)"
    code = f"import sys; from infra import metrics; {told}; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_board_asks_for_what_there_is() -> None:
    asked = [names_in(expression) for _, expression in board_expressions()]
    assert set().union(*asked) - OTHERS == set(OURS), "a number that is not on the board is not looked at"
    assert set().union(*asked) <= set(OURS) | OTHERS
    variables = {one["name"]: one for one in board()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["cluster"]["allValue"] == ".*"
    for panel in board()["panels"]:
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {one["datasource"]["uid"] for one in [panel, *panel["targets"]]} == {"${datasource}"}
    ids = [panel["id"] for panel in board()["panels"]]
    assert len(set(ids)) == len(ids)


def test_each_alert_says_what_it_means_and_where_to_read_what_to_do() -> None:
    page = ROOT / "docs" / "operating.md"
    for alert in alerts():
        assert names_in(alert["expr"]) <= set(OURS) | OTHERS
        assert alert["for"] and alert["labels"]["severity"] in ("info", "warning", "critical") and alert["annotations"]["summary"]
        file, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert ROOT / file == page and anchor in anchors(page)
        assert f"`{alert['alert']}`" in page.read_text()


def test_the_docs_name_every_number() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    assert [name for name in OURS if f"`{name.removeprefix('ray_video2lora_')}" not in page] == []


STANDING = {  # of 30 minutes, a value a minute: stands from the start, goes on, is done
    'ray_video2lora_stage_left{ray_io_cluster="a", stage="frames"}': "500x35",
    'ray_video2lora_stage_left{ray_io_cluster="a", stage="targets"}': "500-10x35",
    'ray_video2lora_stage_left{ray_io_cluster="a", stage="train"}': "0x35",
}
REJECTING = {  # 20 of 120; 20 of 1,020; all of 99
    'ray_video2lora_rows_total{ray_io_cluster="a", stage="frames", outcome="row"}': "100x20",
    'ray_video2lora_rows_total{ray_io_cluster="a", stage="frames", outcome="reject"}': "20x20",
    'ray_video2lora_rejects_total{ray_io_cluster="a", stage="frames", reason="black"}': "15x20",
    'ray_video2lora_rejects_total{ray_io_cluster="a", stage="frames", reason="deadline"}': "5x20",
    'ray_video2lora_rows_total{ray_io_cluster="a", stage="targets", outcome="row"}': "1000x20",
    'ray_video2lora_rows_total{ray_io_cluster="a", stage="targets", outcome="reject"}': "20x20",
    'ray_video2lora_rejects_total{ray_io_cluster="a", stage="targets", reason="empty_target"}': "20x20",
    'ray_video2lora_rows_total{ray_io_cluster="b", stage="frames", outcome="reject"}': "99x20",
    'ray_video2lora_rejects_total{ray_io_cluster="b", stage="frames", reason="black"}': "99x20",
}
DYING = {
    'ray_video2lora_teacher_engines{ray_io_cluster="a", stage="targets"}': "2x20",
    'ray_video2lora_teacher_starts_total{ray_io_cluster="a", stage="targets"}': "2+1x20",
    'ray_video2lora_teacher_engines{ray_io_cluster="a", stage="judge"}': "2x20",
    'ray_video2lora_teacher_starts_total{ray_io_cluster="a", stage="judge"}': "4x20",
}


@pytest.mark.parametrize(
    ("series", "alert", "at", "fires_for"),
    [
        (STANDING, "StageStandsStill", "15m", []),
        (STANDING, "StageStandsStill", "30m", [("frames", "frames has finished nothing for 20 minutes; 500 left")]),
        (REJECTING, "RejectsHigh", "10m", [("frames", "frames rejects 16.67% of what comes in")]),
        (DYING, "EnginesDie", "2m", []),
        (DYING, "EnginesDie", "5m", [("targets", "targets has started 7 engines, more than twice as many as it asked for")]),
    ],
)
def test_alerts_fire_when_they_should(
    series: dict[str, str], alert: str, at: str, fires_for: list[tuple[str, str]], promtool: str, tmp_path: Path
) -> None:
    (rule,) = [one for one in alerts() if one["alert"] == alert]
    expected = [
        {
            "exp_labels": {"ray_io_cluster": "a", "stage": stage, **rule["labels"]},
            "exp_annotations": {"summary": summary, "runbook": rule["annotations"]["runbook"]},
        }
        for stage, summary in fires_for
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"alertname": alert, "eval_time": at, "exp_alerts": expected}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(MONITORING / "alerts.yaml")], "evaluation_interval": "1m", "tests": [test]}))
    ran = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def scraped(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Our samples at a node's metrics port, by name and our labels: no token is asked for."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in OURS:
                labels = {name: value for name, value in sample.labels.items() if name in OURS[sample.name].labels}
                found[sample.name, frozenset(labels.items())] = sample.value
    return found


def eventually(is_so: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


def scraping(address: str, folder: Path) -> Path:
    """Our configuration, with one node's port where Kubernetes would tell of Pods."""
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert configuration["rule_files"] == ["/etc/prometheus/alerts.yaml"]
    configuration |= {"rule_files": [str(MONITORING / "alerts.yaml")], "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}}
    (job,) = configuration["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"own_namespace": True}}]
    pod = {
        "name": "head",
        "phase": "Running",
        "container_port_name": "metrics",
        "label_ray_io_cluster": "one",
        "label_ray_io_node_type": "head",
    }
    labels = {f"__meta_kubernetes_pod_{name}": value for name, value in pod.items()}
    job["static_configs"] = [{"targets": [address], "labels": labels}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    return file


def tell_the_rest() -> None:
    """What `frames` on a disk has nothing to tell of, by those that tell it."""
    from infra.progress import Counter
    from teacher.measures import Measures
    from training.news import News

    metrics.measured("judgements", Measures(1.0, 2.0, 3.0, 4.0, 1.0, 5.0, 6.0, 7.0, 8.0, 9.0).as_sums())
    metrics.ENGINES.set(2, stage="judge")
    metrics.STORAGE_RETRIES.add(1)
    metrics.TRACKING_AWAY.set(1)
    step = {"step": 3, "loss": 0.5, "at_ms": 1, "n_targets": 8, "n_tokens": 100, "grad_norm": 1.0, "lr": 0.1, "terms": {"ce": 0.5}}
    seconds = {"data": 1.0, "encode": 1.0, "loss": 1.0, "update": 1.0}
    news = News(Counter("train", "steps", 10), None, step=0)
    news.take({"kind": "steps", "steps": [step], "seconds": seconds, "floor_s_per_token": 0.02, "memory_bytes": 1 << 20})


@pytest.mark.slow
def test_prometheus_gets_what_the_table_counts(clips: list[Path], promtool: str, tmp_path: Path) -> None:
    """On a real Ray, whose token is asked for everywhere else."""
    import ray
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    from infra.cluster import cluster
    from infra.sets import frames_set
    from pipeline import frames, manifest

    data = clips[0].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:200])
    (tmp_path / "text.mp4").write_bytes(b"no video at all")
    recipe, where = Recipe(), Where(data=str(tmp_path / "data"), n_cpus=1)
    manifest.run(str(tmp_path), recipe, where)
    metrics.ROWS.add(1000, stage="frames", outcome="row")  # Ray is imported and not up: told to nobody
    with cluster(where):
        frames.run(recipe, where)
        tell_the_rest()
        (node,) = ray.nodes()
        address = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        with pytest.raises(urllib.error.HTTPError, match="401"):  # Ray asks for its token, but here
            urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['RuntimeEnvAgentPort']}/", timeout=30)
        eventually(lambda: {name for name, _ in scraped(address)} == set(OURS))
        found = scraped(address)
        table = frames_set(recipe, where.data)
        reasons = Counted(table.read_rejects()["reason"].to_pylist())
        assert table.n_rows() == 3 and reasons.total() == 2
        of_frames = {key: value for key, value in found.items() if ("stage", "frames") in key[1]}
        told = {(name, tuple(sorted(dict(labels).values()))): value for (name, labels), value in of_frames.items()}
        assert told.pop((metrics.STAGE_SECONDS.exported, ("frames",))) > 0
        assert told == {
            (metrics.ROWS.exported, ("frames", "row")): table.n_rows(),
            (metrics.ROWS.exported, ("frames", "reject")): reasons.total(),
            **{(metrics.REJECTS.exported, tuple(sorted(("frames", reason)))): n for reason, n in reasons.items()},
            (metrics.STAGE_LEFT.exported, ("frames",)): 0,
        }
        assert found[metrics.TRAINING_FLOOR_SHARE.exported, frozenset()] == pytest.approx(0.5)
        assert found[metrics.STAGE_LEFT.exported, frozenset({("stage", "train")})] == 7
        assert {set(dict(labels)) == set(OURS[name].labels) for name, labels in found} == {True}
        time.sleep(GAUGE_LIVES_S)
        assert scraped(address).keys() == found.keys(), "a gauge that stands still is forgotten"
        with running(scraping(address, tmp_path), tmp_path) as prometheus:
            look_at_the_board(prometheus, n_rejects=reasons.total())
    assert {f"ray_{name}" for name in METRICS_GAUGES} >= OTHERS - {"up"}


def look_at_the_board(prometheus: Prometheus, *, n_rejects: int) -> None:
    """Every panel's question is one that Prometheus answers, and but for GPUs with something."""
    eventually(lambda: {title for title, expression in board_expressions() if not prometheus.query(expression)} <= {"GPU"})
    labels = {"ray_io_cluster": "one", "node_type": "head", "pod": "head", "port": "metrics"}
    (answer,) = prometheus.query(f'sum by ({", ".join(labels)}) (ray_video2lora_rejects_total{{stage="frames"}})')
    assert answer["metric"] == labels and float(answer["value"][1]) == n_rejects
    with urllib.request.urlopen(f"{prometheus.endpoint}/api/v1/rules", timeout=30) as answered:
        (group,) = json.load(answered)["data"]["groups"]
    assert {rule["name"]: rule["health"] for rule in group["rules"]} == {alert["alert"]: "ok" for alert in alerts()}
