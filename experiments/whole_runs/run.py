"""What does each strategy cost in a whole run: time to the first frame, peak, speed?

    python -m experiments.whole_runs.run --out experiments/whole_runs

One process, so that only the strategy differs; bytes and counts over several ranks, FSDP2 beside ours, are
`python -m experiments.strategies.run`.
"""

from __future__ import annotations

import sys

from experiments.board import answer, options

VARIED = ["+strategy=single_device,fsdp_stream,diagonal_pipeline,timestep_pipeline,replicated"]
SHOWN = {
    "reference/psnr": "PSNR against one device, dB",
    "memory/weights/device": "weights on the device, MB",
    "memory/run/allocated": "peak, MB",
    "traffic/host_bytes_per_block": "from host a block, MB",
    "paired/ratio": "process time against one device",
}


def main() -> None:
    assert __doc__
    given = options(__doc__, seconds=4).parse_args()
    sys.exit(1 if answer(given, VARIED, SHOWN, "single_device") else 0)


if __name__ == "__main__":
    main()
