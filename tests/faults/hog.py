"""Another's job on the cluster: holds so many CPUs until it is ended. `python -m tests.faults.hog N`, RAY_ADDRESS."""

import sys
import time

import ray


@ray.remote
class Hog:
    def holds(self) -> bool:
        return True


def main() -> None:
    ray.init(log_to_driver=False, logging_level="ERROR")
    hog = Hog.options(num_cpus=float(sys.argv[1])).remote()
    ray.get(hog.holds.remote())
    print("holding", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
