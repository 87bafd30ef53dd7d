"""What do cells in flight cost in latency, and save in traffic?

    python -m experiments.cells_in_flight.run --out experiments/cells_in_flight

Weights are streamed from the host; one arrival of a unit serves K cells. Bytes for each block fall by K, while a block
waits for those it shares passes with. The pictures are the same, bit for bit.
"""

from __future__ import annotations

import sys

from experiments.board import answer, options

VARIED = ["+strategy=fsdp_stream", "strategy.source=host", "strategy.cells_in_flight=1,2,3,4"]
SHOWN = {
    "reference/psnr": "PSNR against one cell, dB",
    "traffic/host_bytes_per_block": "from host a block, MB",
    "traffic/unit_fetches_per_block": "fetches of units a block",
    "schedule/ticks": "passes over the units",
    "memory/run/allocated": "peak, MB",
    "paired/ratio": "process time against one cell",
}


def main() -> None:
    assert __doc__
    given = options(__doc__, seconds=6).parse_args()
    sys.exit(1 if answer(given, VARIED, SHOWN, "cells_in_flight=1") else 0)


if __name__ == "__main__":
    main()
