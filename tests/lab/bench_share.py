"""`make bench-share`: bundles published a second, beside a plain loop that writes, fsyncs and renames the same files.

On a real GlusterFS volume and on a local ext4, 1, 100 and 1,000 certificates for 3 consumers each; prints a table,
writes build/bench/share.json. Both ways take turns, so that what else the machine does meets both alike.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.lab import machine
from tests.lab.volume import LOCAL, PYTHON, Volume, written

COUNTS = (1, 100, 1000)
AT_ONCE = 100  # certificates between two turns
MEGABYTES = 4096  # sparse; 1,000 certificates want more than 100,000 inodes, gluster's own among them
CONSUMERS = ("web1", "mail1", "chat1")
LOAD = (Path(__file__).parent / "share_load.py").read_text()
Figures = dict[str, float]


def main(counts: tuple[int, ...] = COUNTS) -> int:
    """Measure, print, write."""
    if missing := machine.capabilities():
        sys.exit("no bench here: " + "; ".join(missing))
    figures: Figures = {}
    with Volume(megabytes=MEGABYTES) as volume:
        places = {
            "local": (LOCAL, volume.local_disk),
            "gluster": ("/srv/le", volume.gluster.brick(volume.host)),
        }
        for place, (root, disk) in places.items():
            for count in counts:
                found = _measured(volume, place, root, disk, count)
                # The last count's are also those of the place.
                figures |= found | {
                    name.removesuffix(f"_{count}"): value
                    for name, value in found.items()
                    if name.startswith(("vs_floor", "publishes"))
                }
                _print(found)
                _write(figures)
    return 0


def _write(figures: Figures) -> None:
    target = machine.PROJECT / "build/bench/share.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n")


def _measured(volume: Volume, place: str, root: str, disk: Path, count: int) -> Figures:
    took, used, bytes_, bundles = ({"publish": 0.0, "floor": 0.0} for _ in range(4))
    rounds = max(1, count // AT_ONCE)
    at_once = count // rounds
    # The floor is the same at every size: a quarter as many in each turn tells it, in a quarter of the time.
    for _ in range(rounds):
        for way, certificates in (("publish", at_once), ("floor", max(1, at_once // 4))):
            before = written(str(disk))
            argv = [PYTHON, "-c", LOAD, way, root, str(certificates), *CONSUMERS]
            seconds, cpu = json.loads(volume.cert.run(argv, timeout=600).stdout)
            volume.cert.run(["sync"])
            bundles[way] += certificates * len(CONSUMERS)
            took[way], used[way] = took[way] + seconds, used[way] + cpu
            bytes_[way] += written(str(disk)) - before
    each = {way: took[way] / bundles[way] for way in took}
    return {
        f"publishes_per_second_{place}_{count}": round(1 / each["publish"], 1),
        f"floor_per_second_{place}_{count}": round(1 / each["floor"], 1),
        f"vs_floor_{place}_{count}": round(each["publish"] / each["floor"], 2),
        f"cpu_ms_per_publish_{place}_{count}": round(used["publish"] / bundles["publish"] * 1000, 2),
        f"floor_cpu_ms_{place}_{count}": round(used["floor"] / bundles["floor"] * 1000, 2),
        f"bytes_per_publish_{place}_{count}": round(bytes_["publish"] / bundles["publish"]),
        f"floor_bytes_{place}_{count}": round(bytes_["floor"] / bundles["floor"]),
    }


def _print(figures: Mapping[str, float]) -> None:
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>10}", flush=True)


if __name__ == "__main__":
    sys.exit(main(tuple(map(int, sys.argv[1:])) or COUNTS))
