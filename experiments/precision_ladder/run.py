"""What does a lower precision of the weights cost and save in a whole run?

    python -m experiments.precision_ladder.run --out experiments/precision_ladder

Peak, speed and whatever metric of quality the runs have; errors of matrices and latents are
`python -m experiments.quantised.run`.
"""

from __future__ import annotations

import sys

from experiments.board import answer, options

VARIED = ["precision=fp32,bf16,fp8,int8"]


def main() -> None:
    assert __doc__
    given = options(__doc__, seconds=4).parse_args()
    sys.exit(1 if answer(given, VARIED, ("front", "drift"), against="fp32") else 0)


if __name__ == "__main__":
    main()
