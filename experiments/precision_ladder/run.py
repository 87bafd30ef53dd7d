"""What does a lower precision of the weights cost and save in a whole run?

    python -m experiments.precision_ladder.run --out experiments/precision_ladder

Peak, speed and whatever metric of quality the runs have; errors of matrices and latents are
`python -m experiments.quantised.run`.
"""

from __future__ import annotations

import sys

from experiments.board import answer, options

VARIED = ["precision=fp32,bf16,fp8,int8"]
SHOWN = {
    "reference/psnr": "PSNR against fp32, dB",
    "reference/ssim": "SSIM",
    "sync/lip_energy_r": "lips against voice, r",
    "memory/weights/device": "weights, MB",
    "memory/run/allocated": "peak, MB",
    "paired/ratio": "process time against fp32",
}


def main() -> None:
    assert __doc__
    given = options(__doc__, seconds=4).parse_args()
    sys.exit(1 if answer(given, VARIED, SHOWN, "fp32") else 0)


if __name__ == "__main__":
    main()
