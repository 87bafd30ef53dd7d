"""How many steps does a stream need, and what does each cost?

    python -m experiments.sampling_steps.run --out experiments/sampling_steps

The same request with 1 to 8 steps: speed, first frame and peak, coloured by whatever metric of quality the runs have.
Lip sync against ground truth, with the same steps, is `python -m experiments.embedded.run --part settings`.
"""

from __future__ import annotations

import sys

from experiments.board import answer, options

VARIED = ["sampler.steps=1,2,3,4,6,8"]
SHOWN = {
    "reference/psnr": "PSNR against 8 steps, dB",
    "sync/lip_energy_r": "lips against voice, r",
    "identity/toon_colours": "face colours drift, ΔE",
    "quality/sharpness": "sharpness",
    "paired/process_ms_per_frame": "process ms a frame",
    "paired/ratio": "cost against 1 step",
}


def main() -> None:
    assert __doc__
    given = options(__doc__, seconds=4).parse_args()
    sys.exit(1 if answer(given, VARIED, SHOWN, "steps=8") else 0)


if __name__ == "__main__":
    main()
