"""That Pods find a node, that a queue has room, that a tick does not fall on another."""

import pytest
import yaml

from infra.config import NodeGroup, Where
from infra.rayjob import nodes_of
from tests.k8s.built import OVERLAYS, Object, find, objects, pods, put
from tests.k8s.hardening import quantity

RESOURCES = ("cpu", "memory", "ephemeral-storage", "nvidia.com/gpu")


def asked(job: Object) -> dict[str, float]:
    """What Kueue reserves for a RayJob: its head, its submitter and its groups at their size."""
    sizes = {group["groupName"]: group["replicas"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    total = dict.fromkeys(RESOURCES, 0.0)
    for pod in pods(job):
        for container in pod.spec["containers"]:
            for name, amount in container["resources"]["requests"].items():
                total[name] += quantity(amount) * sizes.get(pod.labels.get("ray.io/group", ""), 1)
    return total


def wanting(those: list[Object]) -> list[str]:
    """Templates whose queue leads nowhere, or has no room for them even when it is empty."""
    found = []
    for job in [one for one in those if one["kind"] == "RayJob"]:
        name, cluster = job["metadata"]["name"], job["spec"]["rayClusterSpec"]
        local = find(those, "LocalQueue", job["metadata"]["annotations"]["video2lora.io/queue"])
        (group,) = find(those, "ClusterQueue", local["spec"]["clusterQueue"])["spec"]["resourceGroups"]
        for flavor in group["flavors"]:
            find(those, "ResourceFlavor", flavor["name"])
            quota = {one["name"]: quantity(one["nominalQuota"]) for one in flavor["resources"]}
            assert list(quota) == group["coveredResources"]
            found += [f"{name}: {one} {n:g}" for one, n in asked(job).items() if n > quota.get(one, 0.0)]
        if cluster["enableInTreeAutoscaling"] or any(g["minReplicas"] != g["maxReplicas"] for g in cluster["workerGroupSpecs"]):
            found.append(f"{name}: scales, which Kueue does not know of")
        if "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {}):
            found.append(f"{name}: the template itself is queued")
    return found


def test_the_queue_has_room_for_each_template() -> None:
    assert wanting(objects("kueue")) == []


@pytest.mark.parametrize(
    ("kind", "name", "where", "what", "said"),
    [
        ("ClusterQueue", "video2lora", "spec/resourceGroups/0/flavors/0/resources/3/nominalQuota", 9, "run: nvidia.com/gpu 10"),
        ("RayJob", "training", "spec/rayClusterSpec/workerGroupSpecs/training/replicas", 3, "training: cpu 194.2"),
        ("RayJob", "run", "spec/rayClusterSpec/enableInTreeAutoscaling", True, "run: scales"),
        ("RayJob", "run", "spec/rayClusterSpec/workerGroupSpecs/decode/maxReplicas", 9, "run: scales"),
        ("RayJob", "run", "metadata/labels/kueue.x-k8s.io~1queue-name", "video2lora", "run: the template itself is queued"),
    ],
)
def test_a_queue_that_would_never_let_a_job_in_is_found(kind: str, name: str, where: str, what: object, said: str) -> None:
    those = objects("kueue")
    put(find(those, kind, name), where, what)
    assert said in "\n".join(wanting(those))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_asks_for_gpus_may_go_where_they_are_and_nobody_else(overlay: str) -> None:
    for one in objects(overlay):
        for pod in pods(one):
            has_gpus = any("nvidia.com/gpu" in container["resources"]["limits"] for container in pod.spec["containers"])
            tolerated = {one["key"] for one in pod.spec.get("tolerations", [])}
            assert ("nvidia.com/gpu" in tolerated) == has_gpus, pod.where
            assert pod.labels.get("ray.io/group") in (("teacher", "training") if overlay != "dev" else ()) or not has_gpus, pod.where


def test_decoders_may_go_to_spot_nodes_and_nobody_else() -> None:
    for one in objects("gpu"):
        for pod in pods(one):
            spot = any("spot" in toleration["key"] for toleration in pod.spec.get("tolerations", []))
            assert spot == (pod.labels.get("ray.io/group") == "decode"), pod.where


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_ask_for_what_a_pod_of_the_group_has(overlay: str) -> None:
    """Or Ray would wait for ever: an engine, and a training worker, is in one Pod."""
    those = objects(overlay)
    settings = find(those, "ConfigMap", "video2lora")["data"]
    limits = {g["groupName"]: g["template"]["spec"]["containers"][0]["resources"]["limits"] for g in
              find(those, "RayJob", "run")["spec"]["rayClusterSpec"]["workerGroupSpecs"]}  # fmt: skip
    most = {g["groupName"]: g["maxReplicas"] for g in find(those, "RayJob", "run")["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    gpus = {name: float(limit.get("nvidia.com/gpu", 0)) for name, limit in limits.items()}
    assert float(settings["VIDEO2LORA_TEACHER_GPUS"]) <= gpus["teacher"]
    assert float(settings["VIDEO2LORA_TEACHER_CPUS"]) <= quantity(limits["teacher"]["cpu"])
    per_worker, n_workers = float(settings["VIDEO2LORA_TRAINING_GPUS"]), int(settings["VIDEO2LORA_TRAINING_WORKERS"])
    assert per_worker * n_workers <= gpus["training"] * most["training"]


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay != "raycronjob"])
def test_ticks_do_not_overlap_and_a_late_one_is_not_lost(overlay: str) -> None:
    spec = find(objects(overlay), "CronJob", "retrain")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and spec["timeZone"] == "Etc/UTC"
    assert 10 < spec["startingDeadlineSeconds"] < 86400  # below 10 s a controller that looks every 10 s misses ticks
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 86400, "or a hung one forbids the next"
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (3, 3)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_job_that_gets_no_pods_is_over_before_the_next_tick_would_join_it(overlay: str) -> None:
    """But for one that waits in a queue, which is Kueue's to end."""
    specs = [one["spec"] for one in objects(overlay) if one["kind"] == "RayJob"]
    specs += [one["spec"]["jobTemplate"] for one in objects(overlay) if one["kind"] == "RayCronJob"]
    tries = {(spec.get("preRunningDeadlineSeconds"), 1 + spec["backoffLimit"]) for spec in specs}
    assert {limit for limit, _ in tries} == {None} if overlay == "kueue" else all(limit and limit * n < 24 * 3600 for limit, n in tries)


def test_a_ray_cron_job_runs_the_cluster_of_the_template() -> None:
    those = objects("raycronjob")
    made, template = find(those, "RayCronJob", "retrain")["spec"]["jobTemplate"], find(those, "RayJob", "retrain")["spec"]
    assert not [one for one in those if one["kind"] == "CronJob"]
    assert made["suspend"] is False and made["entrypoint"].startswith("video2lora retrain s3://")
    same = set(template) - {"suspend", "entrypoint"}
    assert {name: made[name] for name in same} == {name: template[name] for name in same}
    grows_to = find(those, "ConfigMap", "video2lora")["data"]["VIDEO2LORA_GROWS_TO"]
    groups = [NodeGroup(n=node.n, CPU=node.n_cpus, GPU=node.n_gpus) for node in nodes_of(find(those, "RayJob", "retrain"))]
    told = Where(data="d", grows_to=grows_to).groups()
    assert sorted(told, key=repr) == sorted([one for one in groups if one.CPU], key=repr), "no submitter finds it out there"


def test_prometheus_scrapes_ports_that_pods_have_and_shows_what_is_shipped() -> None:
    those = objects("gpu")
    (scraped,) = yaml.safe_load(_config(those, "prometheus")["prometheus.yml"])["scrape_configs"]
    (ports,) = [rule["regex"].split("|") for rule in scraped["relabel_configs"] if "as-metrics" in rule.get("regex", "")]
    for pod in pods(find(those, "RayJob", "run")):
        if pod.kind in ("head", "worker"):
            assert {port["name"] for port in pod.spec["containers"][0]["ports"]} & set(ports), pod.where
    assert yaml.safe_load(_config(those, "prometheus")["alerts.yaml"])["groups"] is not None
    (source,) = yaml.safe_load(_config(those, "grafana")["datasource.yaml"])["datasources"]
    service = find(those, "Service", "prometheus")
    assert source["url"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def _config(those: list[Object], name: str) -> dict[str, str]:
    """Of a ConfigMap whose name ends in a hash of what is in it."""
    (found,) = [one for one in those if one["kind"] == "ConfigMap" and one["metadata"]["name"].startswith(f"{name}-")]
    return found["data"]
