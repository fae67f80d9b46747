"""`python -m tests.infra.at_once COMMAND RECIPE`: two submit the same in one moment, each after both have seen that it does not run.

Prints what each was told: the job's name, and whether it was there already.
"""

import json
import sys
import threading

from infra.config import load_recipe, load_where
from infra.ray_jobs import RayJobs
from infra.shipped import placed, work
from infra.submit import Job, join_or_start

WAIT_S = 60.0


def main(command: str, recipe: str) -> None:
    where = load_where()
    assert where.ray_api is not None
    asked = placed(work(command, None, load_recipe(recipe), where), is_here=True)
    both = threading.Barrier(2)

    class AtOnce(RayJobs):
        def jobs(self) -> list[Job]:
            found = super().jobs()
            both.wait(WAIT_S)
            return found

    clusters = [AtOnce(where.ray_api), AtOnce(where.ray_api)]
    told: list[tuple[str, bool]] = []
    threads = [threading.Thread(target=lambda one=one: told.append(join_or_start(asked, one))) for one in clusters]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    print(json.dumps(sorted(told)))


if __name__ == "__main__":
    main(*sys.argv[1:])
