"""One benchmark of all rows in the guides' tables of speed.

python -m tests.benchmarks [--device=gpu] [--only=adm,ddp_t] [--minutes=8] [--rounds=2]

See `driver.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # its programs find each other there, too

from driver import main  # noqa: E402

main()
