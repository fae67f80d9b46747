"""KubeRay's CRDs -> what of them a test needs: `python tests/k8s/crds/strip.py FILE.yaml...` writes NAME.json beside this file.

From https://github.com/ray-project/kuberay, release v1.7.0, ray-operator/config/crd/bases (Apache-2.0); changed: descriptions, printer
columns and old versions are left out, which leaves a sixth. RayCluster's own is not needed: no manifest has one, a RayJob holds its spec.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def stripped(node: Any) -> Any:
    """Without descriptions: a key of a schema, and not the property of that name, which is no text."""
    if isinstance(node, dict):
        return {key: stripped(value) for key, value in node.items() if not (key == "description" and isinstance(value, str))}
    return [stripped(value) for value in node] if isinstance(node, list) else node


def main(files: list[str]) -> None:
    for file in files:
        crd = yaml.safe_load(Path(file).read_text())
        (version,) = [version for version in crd["spec"]["versions"] if version["storage"]]
        kept = {"kind": crd["spec"]["names"]["kind"], "version": version["name"], "schema": stripped(version["schema"]["openAPIV3Schema"])}
        target = Path(__file__).parent / f"{crd['spec']['names']['plural']}.json"
        target.write_text(json.dumps(kept, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
