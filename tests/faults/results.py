"""What the scenarios found, a line of JSON each in the file that V2L_CHAOS_LOG names -> the table of docs/faults.md.

V2L_CHAOS=10 V2L_CHAOS_LOG=chaos.jsonl pytest tests/faults        (`make chaos`)
python -m tests.faults.results chaos.jsonl
"""

import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def note(fault: str, **found: Any) -> None:
    """Add a line, where a log is asked for."""
    if log := os.environ.get("V2L_CHAOS_LOG"):
        with open(log, "a") as file:
            file.write(json.dumps({"fault": fault, **found}) + "\n")


def table(lines: Sequence[Line]) -> str:
    """A row of Markdown per fault, as they first came. Exit codes: of the run that met the fault, then of the same command again."""
    rows = ["| fault | times | rows lost | rows twice | made again: min, median, max | exit codes |", "|" + "---|" * 6]
    for fault in dict.fromkeys(line["fault"] for line in lines):
        of = [line for line in lines if line["fault"] == fault]
        again = sorted(line["n_redone"] for line in of)
        codes = Counter(", ".join(map(str, line["codes"])) for line in of)
        told = "; ".join(f"{code} ({n})" for code, n in codes.most_common())
        n_lost, n_twice = (sum(line[name] for line in of) for name in ("n_lost", "n_twice"))
        rows.append(f"| {fault} | {len(of)} | {n_lost} | {n_twice} | {again[0]}, {statistics.median(again):g}, {again[-1]} | {told} |")
    return "\n".join(rows)


def main() -> None:
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))


if __name__ == "__main__":
    main()
