"""One benchmark of the most important rows of the guides' tables of speed.

python tests/benchmarks [--device=gpu] [--only=adm,ddp_t] [--minutes=8] [--rounds=2]

See `driver.py`.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # the package need not be installed

from driver import main  # noqa: E402

main()
