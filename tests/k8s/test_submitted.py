"""What `video2lora submit` makes of the templates is held to all that they are held to."""

import pytest

from infra.config import load_recipe, where_of
from infra.rayjob import environment_of, nodes_of, rayjob
from infra.resources import needs, stages, unmet
from infra.shipped import work
from tests.k8s.built import OVERLAYS, Object, find, objects, pods
from tests.k8s.hardening import softness
from tests.k8s.operator_rules import refusals
from tests.k8s.references import dangling
from tests.k8s.schemas import of_pod, of_schema
from tests.k8s.traffic import selecting_nothing

COMMANDS = {"pipeline": "frames", "teacher": "targets", "training": "train", "run": "run", "retrain": "retrain"}


def submitted(those: list[Object], template: str, recipe: str) -> Object:
    there = find(those, "RayJob", template)
    settings = {one["metadata"]["name"]: one["data"] for one in those if one["kind"] == "ConfigMap"}
    where = where_of(environment_of(there, settings))
    asked = work(COMMANDS[template], None, load_recipe(recipe), where)
    assert (
        where.data.startswith("s3://")
        and unmet(needs(stages(asked.command, None, asked.recipe), asked.recipe, where), nodes_of(there)) == []
    )
    return rayjob(asked, asked.run, there)


@pytest.mark.parametrize("template", COMMANDS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_copy_of_a_template_is_taken(overlay: str, template: str) -> None:
    those = objects(overlay)
    copy = submitted(those, template, "demo" if overlay == "dev" else "smolvlm2_500m")
    assert of_schema(copy) == [] and refusals(copy) == []
    assert [said for pod in pods(copy) for said in of_pod({"metadata": {"labels": pod.labels}, "spec": pod.spec})] == []
    with_it = [one for one in those if one["kind"] not in ("RayJob", "RayCronJob")] + [copy]
    assert softness(with_it) == [] and dangling(with_it) == []
    assert copy["spec"]["suspend"] == (overlay == "kueue")
    queue = copy["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    assert queue == ("video2lora" if overlay == "kueue" else None)
    assert selecting_nothing([*those, copy]) == []
