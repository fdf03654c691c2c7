"""Run all benchmarks, one after another, and put the figures into README.md.

python -m benchmarks [--quick] [NAME …]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import HERE, on_interrupt, text

NAMES = ("cli", "footprint", "wake", "cloud", "forwarder", "floods", "node", "warmup")
BEGIN, END = "<!-- figures: written by python -m benchmarks -->\n", "<!-- end of figures -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="short runs, not recorded")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(
            f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    on_interrupt()
    failed = []
    for name in given.names or NAMES:
        # A process of its own: one benchmark's pinning and imports must not touch the next one's.
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            *(["--quick"] if given.quick else []),
        ]
        # Not `subprocess.run`, which kills its child a moment after Ctrl-C: this one cleans up.
        with subprocess.Popen(command, cwd=HERE.parent) as child:
            try:
                if child.wait():
                    failed.append(name)
            except (KeyboardInterrupt, SystemExit):
                child.terminate()
                child.wait()
                raise
    if not given.quick:
        write_readme()
    if failed:
        print(f"error: not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def write_readme() -> None:
    """Replace the figures in README.md by those of the records."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    records = [HERE / "results" / f"{name}.json" for name in NAMES]
    figures = "\n".join(_markdown(path) for path in records if path.exists())
    readme.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}")


def _markdown(record: Path) -> str:
    data = json.loads(record.read_text())
    machine = data["machine"]
    lines = [
        f"### {data['title']}",
        "",
        f"{data['date']}, {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
        "",
    ]
    for title, rows in data["tables"].items():
        columns = list(rows[0])
        lines += [
            f"{title}:",
            "",
            f"| {' | '.join(columns)} |",
            "|---" + "|---:" * (len(columns) - 1) + "|",
        ]
        lines += [f"| {' | '.join(text(value) for value in row.values())} |" for row in rows]
        lines.append("")
    for target in data["targets"]:
        sign, mark = "≤" if target["at_most"] else "≥", "met" if target["met"] else "**missed**"
        lines.append(
            f"- {target['what']}: {text(target['measured'])} (target {sign} {target['limit']:g}): {mark}"
        )
    lines += [f"- {note}" for note in data["notes"]]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
